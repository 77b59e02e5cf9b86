"""Fixtures of the evaluation tests."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from panoptic_scenes import CATEGORIES, segment, write_panoptic

from spatialflow.data import register_coco_panoptic


@pytest.fixture
def register(tmp_path):
    """Function that writes images with their segments as a dataset and returns its name."""
    names = []

    def write_and_register(images, categories=CATEGORIES):
        folder = tmp_path / f"dataset{len(names)}"
        folder.mkdir()
        names.append(f"evaluation_test_{len(names)}")
        register_coco_panoptic(names[-1], *write_panoptic(folder, images, categories))
        return names[-1]

    yield write_and_register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cityscapes(tmp_path):
    """Name of a dataset with Cityscapes' metadata: one image, a road (7000) and a car (26001)."""
    road, car = (next(c for c in CITYSCAPES_CATEGORIES if c["name"] == n) for n in ("road", "car"))
    id_map = np.where(np.arange(12).reshape(3, 4) < 8, 7000, 26001)
    images = [(id_map, [segment(7000, road["id"]), segment(26001, car["id"])])]
    _, png, panoptic_json = write_panoptic(tmp_path, images, CITYSCAPES_CATEGORIES)
    builtin = MetadataCatalog.get("cityscapes_fine_panoptic_val").as_dict()
    metadata = {**builtin, "panoptic_root": png, "panoptic_json": panoptic_json}
    name = metadata["name"] = "evaluation_test_cityscapes"
    MetadataCatalog.get(name).set(**metadata)
    yield name
    MetadataCatalog.remove(name)
