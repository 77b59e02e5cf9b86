"""Datasets: registration, reading, targets, augmentation and loaders."""

from .categories import Categories
from .coco_panoptic import load_coco_panoptic, read_panoptic_json
from .loader import build_test_loader, build_train_loader
from .mapper import PanopticMapper
from .register import (
    dataset_categories,
    datasets_root,
    load_dataset_dicts,
    prepare_datasets,
    register_coco_panoptic,
)

__all__ = [
    "Categories",
    "PanopticMapper",
    "build_test_loader",
    "build_train_loader",
    "dataset_categories",
    "datasets_root",
    "load_coco_panoptic",
    "load_dataset_dicts",
    "prepare_datasets",
    "read_panoptic_json",
    "register_coco_panoptic",
]
