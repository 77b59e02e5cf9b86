"""From a picture to Detectron2's output, in numpy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .metadata import Metadata, ModelFileError
from .resize import input_size, resize
from .sessions import Arrays, Session, open_session

MAX_PIXELS = 2**26
"""Pixels of the largest picture by default. One of 50 megapixels took 3.4 GB in onnxruntime
and 4.9 GB in OpenVINO."""


class PanopticModel:
    """A model in a file that ``spatialflow export`` wrote. Several threads may call it.

    Args:
        path: an ``.onnx`` file, or the ``.xml`` file of an OpenVINO IR.
        engine: "onnxruntime" or "openvino"; None: what is installed, OpenVINO first.
        threads: of the engine; 0: as it likes.
        precision: "float32", or "bfloat16" with OpenVINO on CPUs that have it.
        settings: thresholds other than those in the file, by name: ``detection_thresh``, over
            which detections are kept, and those of the merge, ``score_thresh``,
            ``overlap_thresh``, ``stuff_area_limit`` and ``box_fill_min_free``.
        max_pixels: larger pictures are refused.

    Attributes:
        metadata: what the file says of its model: classes, colours, resize, thresholds.

    Raises:
        FileNotFoundError: no such file.
        ModelFileError: it is no exported model, is damaged, or is of another version.
        ValueError: an unknown engine, precision or threshold.

    Example:
        >>> model = PanopticModel("model.onnx")
        >>> panoptic_map, segments = model(image)["panoptic_seg"]
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        engine: str | None = None,
        threads: int = 0,
        precision: str = "float32",
        settings: Mapping[str, float] | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        self._session: Session = open_session(Path(path), engine, threads, precision)
        self.metadata: Metadata = self._session.metadata
        if self.metadata.stop == "dense":
            raise ModelFileError(
                f"{path} ends before boxes are chosen (--stop dense); export it without --stop."
            )
        self.settings = {**self.metadata.settings, **(settings or {})}
        if unknown := sorted(set(self.settings) - set(self.metadata.settings)):
            known = ", ".join(self.metadata.settings) or "none"
            raise ValueError(f"{path} has no threshold {unknown[0]!r}; it has {known}.")
        self.max_pixels = max_pixels

    def __call__(self, image: np.ndarray | Image.Image, masks: bool = False) -> dict[str, Any]:
        """Segment one picture.

        Args:
            image: (H, W, 3) uint8 in RGB order, grey (H, W) or RGBA (H, W, 4); or a picture of
                Pillow.
            masks: also ``pred_masks`` of the instances.

        Returns:
            As Detectron2's models: ``panoptic_seg``, the map (H, W) int32 with 0 for void, and
            its segments: dicts with ``id``, ``isthing``, ``category_id`` (thing class or stuff
            label), ``area`` and, of things, ``score``. ``instances``: a dict of ``pred_boxes``
            (n, 4), ``scores`` (n,), ``pred_classes`` (n,) and ``pred_masks`` (n, H, W) bool. Of a
            file that stops at the masks ``sem_seg`` (S, H, W) in place of ``panoptic_seg``.

        Raises:
            TypeError, ValueError: it is no picture, or one of more than ``max_pixels``.
        """
        image = as_rgb(image)
        height, width = image.shape[:2]
        network = input_size(height, width, self.metadata.resize)
        for pixels, what in ((height * width, "has"), (network[0] * network[1], "resized has")):
            if pixels > self.max_pixels:
                raise ValueError(
                    f"The picture of {width}x{height} {what} {pixels} pixels, more than "
                    f"{self.max_pixels}: make it smaller, or raise max_pixels where there is "
                    "enough memory."
                )
        return self._described(self._session.run(self.inputs(image)), (height, width), masks)

    def inputs(self, image: np.ndarray) -> Arrays:
        """The inputs of the file for a picture (H, W, 3) uint8 in RGB order."""
        return {
            "image": resize(image, self.metadata.resize),
            "output_size": np.array(image.shape[:2], dtype=np.int64),
            "settings": at_least(list(self.settings.values())),
        }

    def segments(self, output: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The segments of a result in the dataset's terms, ready for JSON.

        Args:
            output: what calling the model returned.
        """
        described = []
        for segment in output["panoptic_seg"][1]:
            category = self.category(segment)
            described.append(
                {**segment, "category_id": category["id"], "category": category["name"]}
            )
        return described

    def category(self, segment: Mapping[str, Any]) -> dict[str, Any]:
        """``id``, ``name``, ``color`` and ``isthing`` of a segment's class."""
        classes = self.metadata.things if segment["isthing"] else self.metadata.stuff
        return classes[segment["category_id"]]

    def _described(self, outputs: Arrays, size: tuple[int, int], masks: bool) -> dict[str, Any]:
        there = outputs["scores"] > 0
        instances = {
            "pred_boxes": outputs["boxes"][there],
            "scores": outputs["scores"][there],
            "pred_classes": outputs["classes"][there].astype(np.int64),
        }
        if masks:
            found = outputs["masks"][there]
            instances["pred_masks"] = paste_masks(found, instances["pred_boxes"], size)
        if "panoptic" not in outputs:
            return {"instances": instances, "sem_seg": outputs["stuff_scores"]}
        segments = _segments(outputs)
        return {"panoptic_seg": (outputs["panoptic"], segments), "instances": instances}


def at_least(thresholds: list[float]) -> np.ndarray:
    """Thresholds as float32, rounded up: what is at least 0.37 is at least the result."""
    rounded = np.array(thresholds, dtype=np.float32)
    return np.where(rounded < thresholds, np.nextafter(rounded, np.float32(np.inf)), rounded)


def as_rgb(image: np.ndarray | Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a picture; see :class:`PanopticModel` for the errors."""
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise TypeError(f"A picture is a numpy array of uint8 values 0 to 255, not {kind}.")
    image = image[:, :, None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
        raise ValueError(
            f"A picture has the shape (H, W, 3), (H, W) or (H, W, 4), not {image.shape}."
        )
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return image[:, :, :3]


def paste_masks(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The masks of instances at the size of the picture.

    Args:
        masks: (n, M, M) probabilities; a pixel of at least 0.5 belongs to the mask.
        boxes: (n, 4), x1 y1 x2 y2 in pixels of the picture.
        size: H and W.

    Returns:
        (n, H, W) bool.
    """
    pasted = np.zeros((len(masks), *size), dtype=bool)
    for out, mask, (x1, y1, x2, y2) in zip(pasted, masks, boxes, strict=True):
        rows = _sampling_weights(size[0], y1, y2, mask.shape[0])
        columns = _sampling_weights(size[1], x1, x2, mask.shape[1])
        out[:] = rows @ mask @ columns.T >= 0.5
    return pasted


def _sampling_weights(length: int, low: float, high: float, side: int) -> np.ndarray:
    """(length, side) bilinear weights of a mask's rows for the rows of the picture."""
    at = (np.arange(length, dtype=np.float32) + 0.5 - low) / (high - low) * side - 0.5
    return np.clip(1 - np.abs(at[:, None] - np.arange(side, dtype=np.float32)), 0, None)


def _segments(outputs: Arrays) -> list[dict[str, Any]]:
    """The segments of a map in ascending id."""
    ids, areas = outputs["segment_ids"], outputs["segment_areas"]
    scores, classes = outputs["scores"], outputs["classes"]
    segments = []
    for row in np.flatnonzero(ids):
        isthing = bool(row < len(scores))
        segment: dict[str, Any] = {"id": int(ids[row]), "isthing": isthing}
        segment["area"] = int(areas[row])
        if isthing:
            segment |= {"category_id": int(classes[row]), "score": float(scores[row])}
        else:
            segment["category_id"] = int(row - len(scores))
        segments.append(segment)
    return segments
