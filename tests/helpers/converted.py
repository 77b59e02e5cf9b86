"""What the tests of the converters share: checking and loading what they wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from spatialflow.data import PanopticMapper, load_dataset_dicts, register_coco_panoptic
from spatialflow.data.register import PanopticFiles, find_panoptic_files
from spatialflow.data.targets import read_panoptic_png
from spatialflow.tools.check import check_dataset
from spatialflow.tools.convert import Dataset


def problems(dataset: Dataset) -> set[str]:
    """Kinds of the problems that the checker finds, classes that never occur aside."""
    files = PanopticFiles(dataset.image_root, dataset.panoptic_root, dataset.panoptic_json)
    return problem_kinds(files)


def problems_of_name(name: str) -> set[str]:
    return problem_kinds(find_panoptic_files(name))


def problem_kinds(files: PanopticFiles) -> set[str]:
    return {p.kind for p in check_dataset(files).problems} - {"class_never_occurs"}


def content(dataset: Dataset) -> dict:
    return json.loads(Path(dataset.panoptic_json).read_text())


def maps(dataset: Dataset, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of one image: (H, W) category ids, -1 for void, and whether pixels are of a crowd."""
    annotation = content(dataset)["annotations"][number]
    ids = read_panoptic_png(str(Path(dataset.panoptic_root) / annotation["file_name"]))
    classes, crowd = np.full(ids.shape, -1), np.zeros(ids.shape, bool)
    for s in annotation["segments_info"]:
        classes[ids == s["id"]] = s["category_id"]
        crowd |= (ids == s["id"]) & bool(s["iscrowd"])
    return classes, crowd


def first_sample(dataset: Dataset, cfg) -> dict:
    """The first image as training gets it, unflipped, at its size."""
    register_coco_panoptic(
        dataset.name, dataset.image_root, dataset.panoptic_root, dataset.panoptic_json
    )
    return map_first(dataset.name, cfg)


def map_first(name: str, cfg) -> dict:
    cfg.INPUT.RANDOM_FLIP = "none"
    return PanopticMapper(cfg, True)(load_dataset_dicts(name)[0])


def save(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 or uint16 grey or RGB pixels, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_noise(path: Path, height: int = 20, width: int = 30) -> None:
    save(path, np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8))
