"""``dataset.json``: the dataset that an evaluation was of, and where its files are."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from spatialflow.data.coco_panoptic import read_images_json, read_panoptic_json
from spatialflow.data.shards import is_url
from spatialflow.utils.files import read_json, write_json

from .predictions import SAVE_FIRST, PanopticFolder

DATASET_JSON = "dataset.json"


@dataclass(frozen=True)
class SavedDataset:
    """A dataset in COCO panoptic format, or images without ground truth.

    Attributes:
        name: the registered name.
        image_root: folder of the images.
        panoptic_root, panoptic_json: of the ground truth; both are None without.
        images_json: JSON with ``images``; for a dataset without ground truth.
    """

    name: str
    image_root: str
    panoptic_root: str | None = None
    panoptic_json: str | None = None
    images_json: str | None = None

    @classmethod
    def open(cls, path: str) -> SavedDataset:
        """Read a ``dataset.json``.

        Raises:
            FileNotFoundError: it is not found.
            ValueError: it does not describe a dataset.
        """
        content: Any = read_json(path, "Dataset", SAVE_FIRST)
        sides: tuple[tuple[str, ...], ...] = (("panoptic_root", "panoptic_json"), ("images_json",))
        if isinstance(content, dict):
            for keys in sides:
                found: dict[str, Any] = {k: content.get(k) for k in ("name", "image_root", *keys)}
                if all(isinstance(value, str) for value in found.values()):
                    return cls(**found)
        raise ValueError(
            f"{path} does not describe a dataset by name, image_root and either panoptic_root and "
            "panoptic_json or images_json."
        )

    def save(self, folder: str) -> None:
        """Write ``dataset.json`` into a folder, with absolute paths."""
        paths = {k: p for k, p in asdict(self).items() if k != "name" and p}
        paths = {k: p if is_url(p) else os.path.abspath(p) for k, p in paths.items()}
        write_json(os.path.join(folder, DATASET_JSON), {"name": self.name, **paths})

    @property
    def truth(self) -> PanopticFolder:
        """The ground truth; ValueError without one."""
        if self.panoptic_json is None or self.panoptic_root is None:
            raise ValueError(f"Dataset {self.name} has no ground truth.")
        return PanopticFolder(self.panoptic_json, self.panoptic_root)

    def images(self) -> Mapping[Hashable, dict[str, Any]]:
        """The entries of ``images`` in the dataset's JSON, by id."""
        if self.panoptic_json is not None:
            images = read_panoptic_json(self.panoptic_json)["images"]
        else:
            assert self.images_json is not None, "open() and the evaluators see to it"
            images = read_images_json(self.images_json)["images"]
        return {image["id"]: image for image in images}
