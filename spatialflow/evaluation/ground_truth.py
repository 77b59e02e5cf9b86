"""The panoptic ground truth of a registered dataset, one image at a time."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from detectron2.data import MetadataCatalog

from spatialflow.data.categories import Categories
from spatialflow.data.coco_panoptic import open_panoptic_json
from spatialflow.data.file_names import file_below
from spatialflow.data.targets import read_panoptic_png


@dataclass(frozen=True)
class AnnotatedImage:
    """Ground truth of one image.

    Attributes:
        png: path of the panoptic PNG.
        id_map: (H, W) int32 segment ids, 0 for void; shared, so not to be written to.
        segments: the image's ``segments_info`` as the JSON has it, with dataset category ids.
    """

    png: str
    id_map: np.ndarray
    segments: list[dict]


class PanopticGroundTruth:
    """Ground truth of a dataset in COCO panoptic format, looked up by image id.

    The evaluators of a dataset share one, so that each PNG is read once for all of them.

    Attributes:
        name: the dataset's registered name.
        categories: its classes.
        files: paths of its files: ``image_root``, ``panoptic_root``, ``panoptic_json``.
        png_names: file name of the PNG, as in the JSON, by image id.
    """

    def __init__(self, dataset_name: str):
        """
        Raises:
            FileNotFoundError: the dataset's JSON is missing.
            ValueError: the dataset is not registered as a panoptic one, or its JSON is none.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.name = dataset_name
        self.categories = Categories.from_metadata(metadata)
        keys = ("image_root", "panoptic_root", "panoptic_json")
        self.files = {key: getattr(metadata, key) for key in keys}
        self._annotations = open_panoptic_json(metadata.panoptic_json)["annotations"]
        self.png_names: dict[Hashable, str] = {}
        self._numbers: dict[Hashable, int] = {}
        for number, annotation in enumerate(self._annotations):
            self.png_names[annotation["image_id"]] = annotation["file_name"]
            self._numbers[annotation["image_id"]] = number
        # More than one, because each evaluator goes over a whole batch before the next does.
        self.load = lru_cache(maxsize=8)(self._load)

    def _load(self, image_id: Hashable) -> AnnotatedImage:
        if image_id not in self._numbers:
            raise ValueError(
                f"Image {image_id!r} is not annotated in {self.files['panoptic_json']}, so it "
                f"cannot be evaluated as part of {self.name}."
            )
        png = file_below(self.files["panoptic_root"], self.png_names[image_id])
        id_map = read_panoptic_png(png)
        id_map.setflags(write=False)
        segments = self._annotations[self._numbers[image_id]]["segments_info"]
        return AnnotatedImage(png, id_map, segments)
