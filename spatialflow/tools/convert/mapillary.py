"""Mapillary Vistas: its panoptic annotation, put right where it differs from COCO's format.

The JSONs are nearly COCO panoptic ones. Areas and boxes are measured again, segments without a
pixel are left out, ids in a PNG without an entry become void, and stuff is never a crowd.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from spatialflow.data.categories import Categories, SegmentClass
from spatialflow.data.coco_panoptic import is_segment_id, open_panoptic_json, read_categories
from spatialflow.data.targets import measure_segments, read_panoptic_png

from .resize import limited_size, resize_map, write_resized
from .writer import Converted, Dataset, Job, require_files, write_dataset

SPLITS = ("training", "validation")
JSON_NAMES = {"v1.2": "panoptic_2018.json", "v2.0": "panoptic_2020.json"}
"""Name of the panoptic JSON by version of the dataset."""


def convert_mapillary(
    root: str, version: str, splits: Sequence[str], max_size: int | None, workers: int
) -> list[Dataset]:
    """Write ``panoptic_VERSION_SPLIT`` and ``panoptic_VERSION_SPLIT.json`` below the root.

    Args:
        root: the unpacked dataset, with ``training`` and ``validation``.
        version: key of ``JSON_NAMES``.
        splits: folders of the root.
        max_size: make images and PNGs smaller, so that the longer side has this many pixels at
            most; the images are then written to ``images_SPLIT_MAXSIZE``. None leaves them.
        workers: number of processes.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: the JSON contradicts itself, or a PNG its JSON.
    """
    return [_convert_split(root, version, split, max_size, workers) for split in splits]


def _convert_split(
    root: str, version: str, split: str, max_size: int | None, workers: int
) -> Dataset:
    panoptic_json = _panoptic_json(root, version, split)
    ending = f"_{max_size}" if max_size else ""
    folder = os.path.join(root, f"panoptic_{version}_{split}{ending}")
    images = os.path.join(root, split, "images")
    smaller = os.path.join(root, f"images_{split}{ending}") if max_size else None
    if smaller:
        os.makedirs(smaller, exist_ok=True)
    dataset = Dataset(
        f"mapillary_{version}_panoptic_{split}{ending}", smaller or images, folder, f"{folder}.json"
    )
    categories = read_categories(panoptic_json)
    resizing = {"from": images, "to": smaller, "max_size": max_size} if smaller else None
    jobs = _jobs(panoptic_json, categories, resizing)
    advice = "Unpack the dataset again."
    names = [os.path.join(images, job.details["image"]["file_name"]) for job in jobs]
    require_files(names, "Image", advice)
    require_files([job.sources[0] for job in jobs], "Panoptic PNG", advice)
    write_dataset(dataset, categories, jobs, _convert, workers)
    return dataset


def _panoptic_json(root: str, version: str, split: str) -> str:
    # The first downloads had version 1.2 alone, without a folder for the version.
    folders = [os.path.join(root, split, version)]
    if version == "v1.2":
        folders.append(os.path.join(root, split))
    paths = [os.path.join(folder, "panoptic", JSON_NAMES[version]) for folder in folders]
    for path in paths:
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(
        f"Mapillary Vistas {version} not found: no {' and no '.join(paths)}. Unpack it there, "
        "or give another --root, --version or --splits."
    )


def _jobs(panoptic_json: str, categories: Categories, resizing: dict[str, Any] | None) -> list[Job]:
    content = open_panoptic_json(panoptic_json)
    images = {image["id"]: image for image in content["images"]}
    jobs = []
    for annotation in content["annotations"]:
        image, png = images.get(annotation["image_id"]), annotation["file_name"]
        where = f"{panoptic_json}, {png}"
        if image is None:
            raise ValueError(
                f"{where}: image_id is {annotation['image_id']!r}, which is not in 'images'."
            )
        details = {
            "image": {k: image[k] for k in ("id", "file_name", "height", "width")},
            "segments": [
                _segment(s, where, categories.segment_classes) for s in annotation["segments_info"]
            ],
            "resizing": resizing,
        }
        products = (os.path.join(resizing["to"], image["file_name"]),) if resizing else ()
        source = os.path.join(os.path.dirname(panoptic_json), png)
        jobs.append(Job(png, (source,), details, products))
    return jobs


def _segment(
    segment: dict[str, Any], where: str, classes: dict[int, SegmentClass]
) -> dict[str, Any]:
    id_, category_id = segment.get("id"), segment.get("category_id")
    if not is_segment_id(id_) or category_id not in classes:
        raise ValueError(
            f"{where}: segment {id_} of category {category_id}: "
            "the id must be from 1 to 2^24 - 1, the category one of 'categories'."
        )
    iscrowd = int(bool(segment.get("iscrowd", 0)) and classes[category_id].isthing)
    return {"id": id_, "category_id": category_id, "iscrowd": iscrowd}


def _convert(job: Job) -> Converted:
    image, segments = job.details["image"], job.details["segments"]
    ids = read_panoptic_png(job.sources[0])
    if ids.shape != (image["height"], image["width"]):
        raise ValueError(
            f"{job.sources[0]} is {ids.shape[1]}x{ids.shape[0]} (width x height), its JSON says "
            f"{image['width']}x{image['height']}. Unpack the dataset again."
        )
    found, known = _ids(ids), {s["id"] for s in segments}
    ids = np.where(np.isin(ids, list(found - known)), 0, ids) if found - known else ids
    resizing = job.details["resizing"]
    if resizing:
        ids = _write_smaller(image["file_name"], ids, resizing)
        image = {**image, "height": ids.shape[0], "width": ids.shape[1]}
    counts = {
        "ids of PNGs without an entry in the JSON, which became void": len(found - known),
        "segments without a pixel, which were left out": len(known - found),
        "segments too small for the new size, which were left out": len(
            (found & known) - _ids(ids)
        ),
    }
    return Converted(image, ids, segments, Counter({k: n for k, n in counts.items() if n}))


def _ids(ids: np.ndarray) -> set[int]:
    return set(measure_segments(ids)[0].tolist()) - {0}


def _write_smaller(file_name: str, ids: np.ndarray, resizing: dict[str, Any]) -> np.ndarray:
    """Write the image at its new size, and return the (H, W) ids at that size."""
    size = limited_size(ids.shape[0], ids.shape[1], resizing["max_size"])
    image = os.path.join(resizing["from"], file_name)
    write_resized(image, size, os.path.join(resizing["to"], file_name))
    return resize_map(ids, size)
