"""ADE20K: semantic and instance PNGs of the scene parsing challenge, 100 things and 50 stuff."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spatialflow.data.categories import Categories

from .compose import NO_LABEL, Object, compose
from .pngs import read_channels, read_values
from .writer import Converted, Dataset, Job, image_entry, list_images, require_files, write_dataset

SPLITS = ("training", "validation")
_CLASSES = 150
# fmt: off
STUFF = (
    1, 2, 3, 4, 5, 6, 7, 10, 12, 14, 17, 18, 22, 26, 27, 29, 30, 35, 41, 47, 49, 52, 53, 55, 60, 61,
    62, 64, 69, 78, 80, 85, 92, 95, 97, 100, 101, 102, 106, 107, 110, 114, 115, 118, 123, 129, 132,
    141, 142, 146,
)
# fmt: on
"""Values of the semantic PNGs that are no class of the instance challenge."""
THINGS = tuple(i for i in range(1, _CLASSES + 1) if i not in STUFF)
"""Values of the semantic PNGs that classes 1, 2, ... of the instance PNGs have, in this order."""

_ADVICE = (
    "The folder must be ADEChallengeData2016 of sceneparsing.csail.mit.edu with "
    "annotations_instance.tar of the same site unpacked in it; see datasets/README.md."
)


def convert_ade20k(root: str, splits: Sequence[str], workers: int) -> list[Dataset]:
    """Write ``panoptic_SPLIT`` and ``panoptic_SPLIT.json`` below the folder ADEChallengeData2016.

    Category ids are the values of the semantic PNGs, 1 to 150. Instances win over the semantic
    PNG; what that labels as a thing without an instance is void.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: a PNG has other values than documented, or another size than its image.
    """
    categories = _categories(os.path.join(root, "objectInfo150.txt"))
    datasets = []
    for split in splits:
        folder = os.path.join(root, f"panoptic_{split}")
        dataset = Dataset(
            f"ade20k_panoptic_{split}",
            os.path.join(root, "images", split),
            folder,
            f"{folder}.json",
        )
        write_dataset(dataset, categories, _jobs(root, split), _convert, workers)
        datasets.append(dataset)
    return datasets


def _categories(path: str) -> Categories:
    """Names from the table that comes with the dataset: tab-separated, the name last."""
    require_files([path], "Class list", _ADVICE)
    lines = Path(path).read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines if line.strip()]
    if [row[0].strip() for row in rows] != [str(i) for i in range(1, _CLASSES + 1)]:
        raise ValueError(f"{path} does not list the classes 1 to {_CLASSES}. {_ADVICE}")
    return Categories.from_json(
        [
            {
                "id": i,
                "name": re.split("[,;]", row[-1])[0].strip(),
                "isthing": int(i not in STUFF),
            }
            for i, row in enumerate(rows, start=1)
        ]
    )


def _jobs(root: str, split: str) -> list[Job]:
    images = os.path.join(root, "images", split)
    jobs = []
    for name in list_images(images):
        png = f"{os.path.splitext(name)[0]}.png"
        semantic, instance = (
            os.path.join(root, kind, split, png) for kind in ("annotations", "annotations_instance")
        )
        jobs.append(Job(png, (semantic, instance), {"image": os.path.join(images, name)}))
    for i, kind in enumerate(("Semantic PNG", "Instance PNG")):
        require_files([job.sources[i] for job in jobs], kind, _ADVICE)
    return jobs


def _convert(job: Job) -> Converted:
    semantic, instance = job.sources
    image = image_entry(job.details["image"])
    size = (image["height"], image["width"])
    values = read_values(semantic, size)
    if values.max() > _CLASSES:
        raise ValueError(f"{semantic} has the value {values.max()}; ADE20K has 0 to {_CLASSES}.")
    red, green, _ = np.moveaxis(read_channels(instance, size), -1, 0)
    objects = {k: _object(red[green == k], k, instance) for k in np.unique(green).tolist() if k}
    labels = np.where(values > 0, values, NO_LABEL)
    ids, segments = compose(labels, green, objects, THINGS, uncovered="void")
    return Converted(image, ids, segments)


def _object(red: np.ndarray, number: int, path: str) -> Object:
    """What an instance is, from the red values of its pixels."""
    classes = np.unique(red).tolist()
    if len(classes) > 1 or not 1 <= classes[0] <= len(THINGS):
        raise ValueError(
            f"{path}: instance {number} (green) has the class {classes} (red); an instance has one "
            f"class from 1 to {len(THINGS)}."
        )
    return Object(THINGS[classes[0] - 1])
