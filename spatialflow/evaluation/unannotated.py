"""Predictions on images without ground truth, such as those of a benchmark's test set."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from spatialflow.data.categories import Categories
from spatialflow.data.register import load_dataset_dicts

from .panoptic import PanopticEvaluator


class UnannotatedImages:
    """What writing predictions needs to know of a dataset without ground truth.

    Attributes:
        name: the dataset's registered name.
        categories: the classes of the dataset that it is like.
        files: paths of its files: ``image_root``, ``images_json``.
        png_names: file name for the PNG of a prediction, that of the image, by image id.
    """

    def __init__(self, dataset_name: str):
        """
        Raises:
            FileNotFoundError, ValueError: see ``load_dataset_dicts``; or two images would have the
                same PNG.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self.name = dataset_name
        self.categories = Categories.from_metadata(metadata)
        self.files = {key: getattr(metadata, key) for key in ("image_root", "images_json")}
        self.png_names = {
            d["image_id"]: f"{os.path.splitext(os.path.basename(d['file_name']))[0]}.png"
            for d in load_dataset_dicts(dataset_name)
        }
        if len(set(self.png_names.values())) < len(self.png_names):
            raise ValueError(
                f"{self.files['images_json']}: images in different folders have the same name, so "
                "their predictions would have the same PNG; rename them."
            )


class PanopticWriter(PanopticEvaluator):
    """Writes what :class:`PanopticEvaluator` writes, for images it has nothing to compare with."""

    def __init__(self, images: UnannotatedImages, output_dir: str):
        """
        Args:
            images: the images to predict.
            output_dir: folder to write to; ``dataset.json`` has the images, no ground truth.
        """
        # Nothing is compared, so the images need no ground truth.
        super().__init__(images, output_dir)  # type: ignore[arg-type]

    def evaluate(self) -> None:
        """Write the lists, in the main process."""
        parts = comm.gather(self._written)
        if comm.is_main_process():
            self._write_lists([a for part in parts for a in part])

    def _process_one(self, image_id: Hashable, id_map: np.ndarray, segments: Sequence) -> None:
        self._write_map(image_id, id_map, [self._with_dataset_id(s, image_id) for s in segments])
