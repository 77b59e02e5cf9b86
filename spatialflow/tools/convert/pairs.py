"""Semantic PNGs and instances, or instances alone, into COCO panoptic format.

The rules: a value of a semantic PNG, and a ``category_id`` of the instances, is a category's id.
Things come from the instances and lie above all stuff. Where instances overlap, the smaller one is
on top, and crowd regions are below the others. A pixel of a semantic PNG that is labelled as a
thing without an instance is crowd or void, as ``uncovered`` says.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from spatialflow.data.categories import Categories
from spatialflow.paths import refuse_overwriting
from spatialflow.utils.files import read_json
from spatialflow.utils.text import name_some

from .compose import NO_LABEL, Object, compose, majority_labels
from .pngs import read_numbers, read_values
from .writer import (
    Converted,
    Dataset,
    Job,
    image_entry,
    list_images,
    require_files,
    write_dataset,
)


@dataclass(frozen=True)
class Pairs:
    """Where the labels are, and how they are to be read.

    Attributes:
        images: folder of the images.
        categories: JSON with the list of categories, as in COCO panoptic format.
        semantic: folder of PNGs of category ids, NAME.png for NAME.jpg; or None.
        instances: instances JSON in COCO format, or None.
        instance_pngs: folder of PNGs of instance numbers, 0 where no instance is; or None.
        void: values of the semantic PNGs that are no category.
        uncovered: one of :data:`spatialflow.tools.convert.compose.UNCOVERED`.
        things: names of the things, where the categories have no ``isthing``; or None.
        crowds: heed ``iscrowd`` of the instances JSON. Annotation tools set it on every mask.
    """

    images: str
    categories: str
    semantic: str | None = None
    instances: str | None = None
    instance_pngs: str | None = None
    void: tuple[int, ...] = (255,)
    uncovered: str = "crowd"
    things: tuple[str, ...] | None = None
    crowds: bool = True


def convert_pairs(pairs: Pairs, output: str, workers: int) -> Dataset:
    """Write the folder ``output`` of panoptic PNGs and ``output.json``.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: a file contradicts another one, or cannot be read.
    """
    if (pairs.instances is None) == (pairs.instance_pngs is None):
        raise ValueError("Give either an instances JSON or a folder of instance PNGs.")
    if pairs.semantic is None and pairs.instances is None:
        raise ValueError("Instance PNGs have no classes; they need semantic PNGs beside them.")
    output = os.path.normpath(output)
    read = (pairs.images, pairs.categories, pairs.semantic, pairs.instances, pairs.instance_pngs)
    refuse_overwriting([output, f"{output}.json"], filter(None, read))
    categories = _read_categories(pairs)
    names = list_images(pairs.images)
    entries = _read_instances(pairs.instances, names) if pairs.instances else {}
    jobs = [_job(pairs, name, entries.get(name, {}), categories) for name in names]
    for kind, folder in (("Semantic", pairs.semantic), ("Instance", pairs.instance_pngs)):
        pngs = [os.path.join(folder, job.png) for job in jobs] if folder else []
        require_files(
            pngs, f"{kind} PNG", "Every image NAME.jpg needs one with its name, NAME.png."
        )
    name = "_".join(Path(output).absolute().parts[-2:])
    dataset = Dataset(name, pairs.images, output, f"{output}.json")
    write_dataset(dataset, categories, jobs, partial(_convert, categories=categories), workers)
    return dataset


def _read_categories(pairs: Pairs) -> Categories:
    content = read_json(pairs.categories)
    if isinstance(content, dict):
        content = content.get("categories")
    if pairs.things is not None:
        content = _with_kinds(content, pairs.things, pairs.categories)
    try:
        categories = Categories.from_json(content)
    except ValueError as e:
        raise ValueError(f"{pairs.categories}: {e}") from e
    both = sorted(categories.segment_classes.keys() & set(pairs.void))
    if both and pairs.semantic:
        raise ValueError(
            f"{pairs.categories}: {both[0]} is the id of a category and void at once; name the "
            "values that are void with --void."
        )
    return categories


def _with_kinds(content: Any, things: Sequence[str], path: str) -> list[dict[str, Any]]:
    """The categories with ``isthing``; the categories of instances JSONs have none."""
    try:
        names = [c["name"] for c in content]
    except (TypeError, KeyError) as e:
        raise ValueError(f"{path}: 'categories' must be a list of objects with a name.") from e
    unknown = [name for name in things if name not in names]
    if unknown:
        raise ValueError(
            f"{path} has no category {unknown[0]!r}; it has {names}. Correct --things."
        )
    return [{**c, "isthing": int(c["name"] in things)} for c in content]


def _read_instances(path: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of the images of a folder, by file name: their ``id`` and ``annotations`` in the JSON."""
    content = read_json(path)
    try:
        file_of = {i["id"]: os.path.basename(i["file_name"]) for i in content["images"]}
        entries = {id_: {"id": id_, "annotations": []} for id_ in file_of}
        for a in content["annotations"]:
            needed = ("id", "category_id", "segmentation")
            kept = {k: a[k] for k in needed} | {"iscrowd": int(a.get("iscrowd", 0))}
            entries[a["image_id"]]["annotations"].append(kept)
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"{path} is no instances JSON in COCO format: {type(e).__name__}, {e}. It has 'images' "
            "(id, file_name) and 'annotations' (id, image_id, category_id, segmentation)."
        ) from e
    count = Counter(file_of.values())
    unknown = [name for name in names if not count[name]]
    if unknown:
        raise ValueError(
            f"{path}: 'images' does not list {name_some(unknown, 1)} of the image folder. Add the "
            "image, without annotations if it has none, or move the file."
        )
    twice = [name for name in names if count[name] > 1]
    if twice:
        raise ValueError(
            f"{path}: 'images' lists {name_some(twice, 1)} more than once; the name must tell an "
            "image."
        )
    return {file_of[id_]: entry for id_, entry in entries.items()}


def _job(pairs: Pairs, name: str, entry: dict[str, Any], categories: Categories) -> Job:
    """``entry`` is that of the instances JSON."""
    stem = os.path.splitext(name)[0]
    folders = {"semantic": pairs.semantic, "instance_png": pairs.instance_pngs}
    paths = {
        kind: os.path.join(folder, f"{stem}.png") for kind, folder in folders.items() if folder
    }
    details = {
        **paths,
        "id": stem,
        **entry,
        "image": os.path.join(pairs.images, name),
        "instances": pairs.instances,
        "void": pairs.void,
        "uncovered": pairs.uncovered,
        "crowds": pairs.crowds,
        "categories": categories.as_json(),
    }
    return Job(f"{stem}.png", tuple(paths.values()), details)


def _convert(job: Job, categories: Categories) -> Converted:
    d = job.details
    image = image_entry(d["image"]) | {"id": d["id"]}
    size = (image["height"], image["width"])
    things = {c.id for c in categories.things}
    labels = np.full(size, NO_LABEL, np.int32)
    if "semantic" in d:
        labels = _read_labels(d["semantic"], size, categories, d["void"])
    if "instance_png" in d:
        object_map, objects = _objects_of_png(d["instance_png"], labels, categories)
    else:
        masks = _read_masks(job, size, categories)
        labels = _paint_stuff(labels, masks, things)
        object_map, objects = _paint_objects(masks, things, size)
    ids, segments = compose(labels, object_map, objects, things, d["uncovered"])
    hidden = len(objects) - len(np.unique(object_map[object_map > 0]))
    notes = Counter({"instances left out, since smaller ones hide them": hidden} if hidden else {})
    return Converted(image, ids, segments, notes)


def _read_labels(
    path: str, size: tuple[int, int], categories: Categories, void: Sequence[int]
) -> np.ndarray:
    values = read_values(path, size)
    found = set(np.unique(values).tolist())
    unknown = sorted(found - categories.segment_classes.keys() - set(void))
    if unknown:
        raise ValueError(
            f"Semantic PNG {path} has the value {unknown[0]} in {(values == unknown[0]).sum()} "
            "pixels, which is no category's id. Add the category, or name the value with --void."
        )
    return np.where(np.isin(values, list(void)), NO_LABEL, values)


def _objects_of_png(
    path: str, labels: np.ndarray, categories: Categories
) -> tuple[np.ndarray, dict[int, Object]]:
    """The instances of a PNG; the class of each is that of most of its pixels."""
    object_map = read_numbers(path, (labels.shape[0], labels.shape[1]))
    objects = {}
    for number, label in majority_labels(labels, object_map).items():
        what = categories.segment_classes.get(label)
        if what is None or not what.isthing:
            kind = "void" if what is None else f"stuff, category {label}"
            raise ValueError(
                f"Instance PNG {path}: most of instance {number} is {kind} in the semantic PNG. "
                "Instances are of things; correct one of the two, or set isthing of the category."
            )
        objects[number] = Object(label)
    return object_map, objects


@dataclass(frozen=True)
class _Mask:
    """An annotation of the instances JSON, decoded: (H, W) bool ``pixels``."""

    category_id: int
    iscrowd: int
    pixels: np.ndarray


def _read_masks(job: Job, size: tuple[int, int], categories: Categories) -> list[_Mask]:
    """The masks of an image, in the order in which they are painted."""
    masks = []
    for a in job.details["annotations"]:
        where = f"{job.details['instances']}: annotation {a['id']}"
        if a["category_id"] not in categories.segment_classes:
            raise ValueError(
                f"{where} has category_id {a['category_id']}, which is not in the categories file."
            )
        try:
            pixels = _decode(a["segmentation"], size)
        except Exception as e:  # pycocotools raises errors of many kinds
            raise ValueError(f"{where}: the segmentation cannot be read: {e}") from e
        iscrowd = a["iscrowd"] if job.details["crowds"] else 0
        masks.append(_Mask(a["category_id"], iscrowd, pixels))
    return sorted(masks, key=lambda m: (not m.iscrowd, -int(m.pixels.sum())))


def _decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool from polygons, or from an RLE, compressed or not."""
    if isinstance(segmentation, list):
        if not segmentation:
            raise ValueError("it has no polygon. A box alone has no pixels; remove it")
        if any(not isinstance(p, list) or len(p) < 6 or len(p) % 2 for p in segmentation):
            # pycocotools would take four numbers for a box.
            raise ValueError("a polygon has three points or more, x and y in turn")
        rle = mask_util.merge(mask_util.frPyObjects(segmentation, *size))
    else:
        if tuple(segmentation["size"]) != size:
            raise ValueError(f"its size is {segmentation['size']}, the image's {list(size)}")
        is_compressed = isinstance(segmentation["counts"], (str, bytes))
        rle = segmentation if is_compressed else mask_util.frPyObjects(segmentation, *size)
    return mask_util.decode(rle).astype(bool)


def _paint_stuff(labels: np.ndarray, masks: Sequence[_Mask], things: set[int]) -> np.ndarray:
    labels = labels.copy()
    for mask in masks:
        if mask.category_id not in things:
            labels[mask.pixels] = mask.category_id
    return labels


def _paint_objects(
    masks: Sequence[_Mask], things: set[int], size: tuple[int, int]
) -> tuple[np.ndarray, dict[int, Object]]:
    object_map = np.zeros(size, np.int32)
    objects = {}
    for number, mask in enumerate((m for m in masks if m.category_id in things), start=1):
        object_map[mask.pixels] = number
        objects[number] = Object(mask.category_id, mask.iscrowd)
    return object_map, objects
