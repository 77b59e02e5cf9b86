"""Reading datasets in COCO panoptic format: an image folder, a folder of id-coded PNGs, one JSON.

A dataset dict of this module is one image::

    {"file_name", "image_id", "height", "width", "pan_seg_file_name",
     "segments_info": [{"id", "category_id", "isthing", "stuff_label", "iscrowd", "area", "bbox"}]}

with ``category_id`` the thing class or the stuff label, ``stuff_label`` the label of the segment's
pixels for the stuff head (:class:`spatialflow.data.categories.SegmentClass`), ``area`` in pixels
and ``bbox`` x, y, width, height, both as the JSON has them. Everything that can be checked without
opening an image is checked while reading.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from spatialflow.utils.files import read_json
from spatialflow.utils.text import name_some

from .categories import Categories, SegmentClass
from .compact import CompactList
from .file_names import file_below, is_file_below, outside
from .shards import is_sharded, names_in_shards

_REQUIRED_FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "file_name", "segments_info"),
}


class DatasetDict(dict):
    """A dataset dict whose KeyError says who can do without the key."""

    def __missing__(self, key: str) -> None:
        raise KeyError(
            f"The dict of {self.get('file_name')} has no {key!r}: its dataset is a panoptic JSON "
            "with PNGs and has no other files. Detectron2's evaluators of instances and semantic "
            "labels need some; use spatialflow.evaluation.build_evaluator."
        )


def read_panoptic_json(path: str) -> dict[str, Any]:
    """A COCO panoptic JSON, checked to be one and to have the fields that it needs.

    Returns:
        dict with the lists ``images``, ``annotations`` and ``categories``.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no JSON, or a JSON of another kind, or a file name in it is absolute or
            leads out of its folder.
    """
    content = read_panoptic_lists(path)
    for key in _REQUIRED_FIELDS:
        _check_entries(path, key, content[key])
    return content


def read_images_json(path: str) -> dict[str, Any]:
    """A JSON of images without ground truth, such as COCO's ``image_info_test-dev2017.json``.

    Returns:
        dict with the list ``images``.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it has no such list, an image lacks a field, or a file name leads out of its
            folder.
    """
    content = read_json(path, "Images JSON")
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        fields = ", ".join(_REQUIRED_FIELDS["images"])
        raise ValueError(f"{path} has no list 'images' with {fields}.")
    _check_entries(path, "images", images)
    return {"images": images}


def read_panoptic_lists(path: str) -> dict[str, Any]:
    """As :func:`read_panoptic_json`, but the entries of the lists may be anything."""
    content = read_json(path, "Panoptic JSON")
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no COCO panoptic JSON: it holds a {type(content).__name__}.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise ValueError(f"{path} is no COCO panoptic JSON: it has no list {key!r}.")
    if any(isinstance(a, dict) and "segmentation" in a for a in content["annotations"][:1]):
        raise ValueError(
            f"{path} is an instances JSON; a panoptic JSON, with segments_info for each image, is "
            "needed."
        )
    return content


def open_panoptic_json(path: str) -> dict[str, Sequence[Any]]:
    """As :func:`read_panoptic_json`, for content that this process will want again.

    A process parses the file once, and again only when its size or times have changed. What stays
    in memory is a small part of what the parser makes.

    Returns:
        dict with ``images`` and ``annotations``, both compact lists, and ``categories``.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_panoptic_json`.
    """
    return _compacted(read_panoptic_json, path, _stamp(path, "Panoptic JSON"))


def _stamp(path: str, kind: str) -> tuple[int, ...]:
    """Numbers that differ when another file is at the path, or the same one was written to."""
    try:
        stat = os.stat(path)
    except FileNotFoundError as e:
        raise FileNotFoundError(f"{kind} {path} not found.") from e
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@lru_cache(maxsize=8)
def _compacted(
    read: Callable[[str], dict[str, Any]], path: str, stamp: tuple[int, ...]
) -> dict[str, Sequence[Any]]:
    content = read(path)
    compacted: dict[str, Sequence[Any]] = {"categories": content.get("categories", [])}
    for key in ("images", "annotations"):
        if key in content:
            compacted[key] = CompactList(content[key])
    return compacted


def read_categories(panoptic_json: str) -> Categories:
    """Classes from the categories of a COCO panoptic JSON; errors name the file."""
    content = open_panoptic_json(panoptic_json)
    try:
        return Categories.from_json(content["categories"])
    except ValueError as e:
        raise ValueError(f"{panoptic_json}: {e}") from e


def load_coco_panoptic(
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    categories: Categories,
    image_file: Callable[[dict[str, Any]], str] = lambda image: image["file_name"],
) -> list[dict[str, Any]]:
    """Dataset dicts of a dataset in COCO panoptic format, in the order of its annotations.

    Args:
        image_root: folder of the images.
        panoptic_root: folder of the PNGs.
        panoptic_json: path of the JSON.
        categories: the classes that segments may have.
        image_file: function from an entry of ``images`` to the path of the image below
            ``image_root``.

    Returns:
        One dict an image, see the module's docstring.

    Raises:
        FileNotFoundError: a folder, the JSON, an image or a PNG is missing.
        ValueError: the JSON is none, is empty, or contradicts itself.
    """
    content = open_panoptic_json(panoptic_json)
    images = {image["id"]: image for image in content["images"]}
    annotations = content["annotations"]
    png_names = _check_pairs(images, annotations, panoptic_json)
    _check_files(image_root, [image_file(image) for image in images.values()], "image")
    _check_files(panoptic_root, png_names, "panoptic PNG")
    classes = categories.segment_classes
    dicts: list[dict[str, Any]] = []
    for annotation in annotations:
        image = images[annotation["image_id"]]
        dicts.append(
            DatasetDict(
                file_name=file_below(image_root, image_file(image)),
                image_id=image["id"],
                height=image["height"],
                width=image["width"],
                pan_seg_file_name=file_below(panoptic_root, annotation["file_name"]),
                segments_info=_segments(annotation, classes, panoptic_json),
            )
        )
    return dicts


def load_unannotated(
    image_root: str,
    images_json: str,
    image_file: Callable[[dict[str, Any]], str] = lambda image: image["file_name"],
) -> list[dict[str, Any]]:
    """Dataset dicts of images without ground truth, in the order of the JSON.

    Args:
        image_root: folder of the images.
        images_json: JSON with the list ``images``, such as COCO's ``image_info_test-dev2017.json``.
        image_file: see :func:`load_coco_panoptic`.

    Returns:
        Dicts with ``file_name``, ``image_id``, ``height`` and ``width``.

    Raises:
        FileNotFoundError: the folder, the JSON or an image is missing.
        ValueError: it is no such JSON, has no image or one twice, or a file name leads out of the
            folder.
    """
    stamp = _stamp(images_json, "Images JSON")
    images = list(_compacted(read_images_json, images_json, stamp)["images"])
    _check_files(image_root, [image_file(image) for image in images], "image")
    dicts = [
        {
            "file_name": file_below(image_root, image_file(image)),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
        }
        for image in images
    ]
    if not dicts or len({image["id"] for image in images}) < len(dicts):
        raise ValueError(f"{images_json}: 'images' is empty or has an image id twice.")
    return dicts


def is_segment_id(value: Any) -> bool:
    """Whether a PNG can hold the id: 0 is void, and there are three bytes."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**24


def _check_entries(path: str, key: str, entries: Iterable[Any]) -> None:
    """ValueError unless the entries of a list have the fields that they need."""
    for entry in entries:
        fields = _REQUIRED_FIELDS[key]
        missing = [f for f in fields if not isinstance(entry, dict) or f not in entry]
        if missing:
            raise ValueError(f"{path}: an entry of {key!r} has no {missing[0]!r}: {entry}"[:500])
        if not is_file_below(entry["file_name"]):
            raise ValueError(f"{path}, {key!r}: {outside(entry['file_name'])}.")


def _check_pairs(
    images: dict, annotations: Sequence[dict[str, Any]], panoptic_json: str
) -> list[str]:
    """The names of the PNGs, where each image has one annotation and each annotation an image."""
    if not annotations:
        raise ValueError(f"{panoptic_json} has no annotations: the dataset is empty.")
    annotated: dict[Any, str] = {}
    for annotation in annotations:
        image_id, file_name = annotation["image_id"], annotation["file_name"]
        if image_id not in images:
            raise ValueError(
                f"{panoptic_json}: the annotation of {file_name} has image_id {image_id!r}, which "
                "is not in 'images'. Add the image or remove the annotation."
            )
        if image_id in annotated:
            raise ValueError(f"{panoptic_json}: image {image_id!r} is annotated more than once.")
        annotated[image_id] = file_name
    lost = [image["file_name"] for id_, image in images.items() if id_ not in annotated]
    if lost:
        raise ValueError(
            f"{panoptic_json}: {name_some(lost)} of 'images' without annotation. Annotate or "
            "remove."
        )
    return list(annotated.values())


def _check_files(root: str, names: Iterable[str], kind: str) -> None:
    missing = _not_in_shards(root, names) if is_sharded(root) else _not_in_folder(root, names, kind)
    if missing:
        raise FileNotFoundError(
            f"{kind[0].upper()}{kind[1:]} missing in {root}: {name_some(missing)}."
        )


def _not_in_shards(root: str, names: Iterable[str]) -> list[str]:
    there = set(names_in_shards(root))
    return [name for name in names if os.path.normpath(name) not in there]


def _not_in_folder(root: str, names: Iterable[str], kind: str) -> list[str]:
    if not os.path.isdir(root):
        raise FileNotFoundError(f"{kind[0].upper()}{kind[1:]} folder {root} not found.")
    # One listing a folder: asking for each file on its own takes minutes on network storage.
    listings: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, base = os.path.split(file_below(root, name))
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listings[folder]:
            missing.append(name)
    return missing


def _segments(
    annotation: dict[str, Any], classes: dict[int, SegmentClass], panoptic_json: str
) -> list[dict[str, Any]]:
    segments: list[dict[str, Any]] = []
    ids: set[int] = set()
    for s in annotation["segments_info"]:
        id_, category_id = s.get("id"), s.get("category_id")
        if not is_segment_id(id_) or id_ in ids or category_id not in classes:
            where = f"{panoptic_json}, {annotation['file_name']}: segment {id_}"
            raise ValueError(f"{where}{_fault(id_, ids, category_id, classes)}")
        ids.add(id_)
        c = classes[category_id]
        segments.append(
            {
                "id": id_,
                "category_id": c.category_id,
                "isthing": c.isthing,
                "stuff_label": c.stuff_label,
                "iscrowd": int(s.get("iscrowd", 0)),
                **{k: s[k] for k in ("area", "bbox") if k in s},
            }
        )
    return segments


def _fault(id_: Any, ids: set[int], category_id: Any, classes: dict[int, SegmentClass]) -> str:
    """What is wrong with a segment that cannot be taken."""
    if not is_segment_id(id_):
        return ": the id must be an integer from 1 to 2^24 - 1."
    if id_ in ids:
        return " is listed twice; ids must differ within an image."
    return (
        f" has category id {category_id}, which is not in the dataset's categories "
        f"{sorted(classes)}."
    )
