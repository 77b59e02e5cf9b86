"""What an exported file says about its model, as JSON under one key of the file's own metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

FORMAT_VERSION = 1
"""Raised when files of older versions of this package can no longer be read."""
METADATA_KEY = "spatialflow"
EXPORT_AGAIN = "export the model again: spatialflow export"


class ModelFileError(ValueError):
    """A file is no exported model, is damaged, or is of another version."""


@dataclass(frozen=True)
class Metadata:
    """A model as far as a runtime has to know it.

    Attributes:
        format_version: :data:`FORMAT_VERSION` of the writer.
        stop: the last step in the file: "panoptic", "masks" or "dense".
        things, stuff: dicts of each thing class and each stuff label in its order, with ``id``
            (the dataset's), ``name``, ``color`` (RGB) and ``isthing``.
        channels: order of the channels of the model, "BGR" or "RGB"; the file's input is RGB.
        pixel_mean, pixel_std: of the model's channels; the graph normalises by them.
        resize: how a picture becomes the network's input: ``library`` ("pil" or "cv2") and either
            ``shorter`` and ``longer`` or ``height`` and ``width``; empty: not at all.
        size_divisibility: the network pads sides to multiples of it.
        settings: thresholds by name, in the order of the input ``settings``: that of detections,
            then those of the merge.
        max_detections: rows of the detections.
        weights_sha256: SHA-256 of names and values of all weights.
        model: name of the meta-architecture.
        made_by: name and version of the writer.
    """

    format_version: int
    stop: str
    things: list[dict[str, Any]]
    stuff: list[dict[str, Any]]
    channels: str
    pixel_mean: list[float]
    pixel_std: list[float]
    resize: dict[str, Any]
    size_divisibility: int
    settings: dict[str, float]
    max_detections: int
    weights_sha256: str
    model: str
    made_by: str

    def as_json(self) -> str:
        """The text that a file holds."""
        return json.dumps(asdict(self))


def parse_metadata(text: str | None, path: str) -> Metadata:
    """The metadata of a file.

    Args:
        text: what the file has under :data:`METADATA_KEY`, or None.
        path: the path of the file, for messages.

    Raises:
        ModelFileError: there is none, it is damaged, or of another version.
    """
    if text is None:
        raise ModelFileError(
            f"{path} was not made by `spatialflow export`: it has no metadata of a panoptic model."
        )
    try:
        content = json.loads(text)
        version = content["format_version"]
    except (ValueError, TypeError, KeyError) as e:
        raise ModelFileError(f"The header of {path} is damaged; {EXPORT_AGAIN}.") from e
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}, and this spatialflow_runtime reads "
            f"{FORMAT_VERSION}; {EXPORT_AGAIN}, or install the version that fits "
            f"({content.get('made_by', 'unknown')})."
        )
    wanted = {field.name for field in fields(Metadata)}
    if not isinstance(content, dict) or set(content) != wanted:
        lacks = ", ".join(sorted(wanted - set(content))) or "nothing"
        raise ModelFileError(f"The header of {path} is damaged, it lacks {lacks}; {EXPORT_AGAIN}.")
    return Metadata(**content)
