"""Datasets: registration, reading, targets, augmentation and loaders.

What stands in ``__all__`` is imported when it is first used: reading files needs no torch.
"""

from __future__ import annotations

from spatialflow.utils.lazy import lazy_names

_HOMES = {
    "Categories": "categories",
    "PanopticMapper": "mapper",
    "build_test_loader": "loader",
    "build_train_loader": "loader",
    "dataset_categories": "register",
    "datasets_root": "register",
    "load_coco_panoptic": "coco_panoptic",
    "load_dataset_dicts": "register",
    "prepare_datasets": "register",
    "read_panoptic_json": "coco_panoptic",
    "register_coco_panoptic": "register",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
