"""What a panoptic JSON says, checked entry by entry without opening an image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from spatialflow.data.categories import Categories, Category, parse_category
from spatialflow.data.coco_panoptic import is_segment_id
from spatialflow.data.file_names import is_file_below
from spatialflow.data.register import PanopticFiles

from .problems import Problem, shown


@dataclass
class Segment:
    """What the JSON says of a segment's pixels; a text stands for what is no number or box."""

    category_id: int | None
    area: float | str | None
    bbox: list[float] | str | None
    iscrowd: bool


@dataclass
class Pair:
    """An image and its annotation, as far as the JSON describes them.

    ``segments`` are the segments with sound ids, by id; ``size`` is (width, height) or, like the
    others, None when the JSON does not say it or says what cannot be used.
    """

    image: str | None = None
    png: str | None = None
    size: tuple[int, int] | None = None
    segments: dict[int, Segment] = field(default_factory=dict)


def check_categories(
    entries: list[Any], registered: Categories | None
) -> tuple[dict[int, Category], list[Problem]]:
    """The dataset's categories by id, and what is wrong with the entries of the JSON.

    Args:
        entries: ``categories`` of the JSON.
        registered: the categories that the dataset was registered with, which then count.
    """
    problems: list[Problem] = []
    parsed: dict[int, Category] = {}
    for i, entry in enumerate(entries):
        try:
            category = parse_category(entry)
        except (ValueError, RecursionError) as e:
            problems.append(Problem("bad_category", f"categories[{i}]", str(e)[:500]))
            continue
        if category.id in parsed:
            names = f"id {category.id}: {shown(parsed[category.id].name)}, {shown(category.name)}"
            problems.append(Problem("duplicate_category_id", f"categories[{i}]", names))
        parsed.setdefault(category.id, category)
    if registered is not None:
        known = {c.id: c for c in (*registered.stuff, *registered.things) if c.id >= 0}
        for id_ in sorted(known.keys() & parsed.keys()):
            if known[id_].isthing != parsed[id_].isthing:
                message = f"id {id_}, {shown(parsed[id_].name)}: {_kind(parsed[id_])} in the JSON"
                problems.append(Problem("category_kind_differs", "categories", message))
        parsed = known
    if not any(c.isthing for c in parsed.values()):
        problems.append(Problem("no_thing_class", "categories"))
    return parsed, problems


def check_entries(
    content: dict[str, list[Any]], categories: dict[int, Category], files: PanopticFiles
) -> tuple[list[Pair], list[Problem]]:
    """Pairs of image and annotation, and what is wrong with the entries of the JSON.

    Args:
        content: what ``read_panoptic_lists`` returns; the lists may hold anything.
        categories: categories by id.
        files: the dataset.

    Returns:
        A pair for every image, annotated or not, and for every annotation without image.
    """
    pairs, problems = _check_images(content["images"], files.image_file)
    if not content["annotations"]:
        problems.append(Problem("no_annotations", files.panoptic_json))
    annotated: set[int | str] = set()
    alone: list[Pair] = []
    for place, entry in _objects(content["annotations"], "annotations", problems):
        image_id: Any = entry.get("image_id")
        png = _name(entry.get("file_name"))
        where = png or place
        problems += _bad_fields(entry, where, {"file_name": _name})
        fault = _pairing_fault(image_id, pairs, annotated)
        if fault:
            problems.append(Problem(fault, where, f"image_id is {shown(image_id)}"))
            pair = Pair()
            alone.append(pair)
        else:
            annotated.add(image_id)
            pair = pairs[image_id]
        pair.png = _inside(png, png, problems)
        pair.segments, found = _check_segments(entry.get("segments_info"), where, categories)
        problems += found
    problems += [
        Problem("image_without_annotation", pair.image or f"image {shown(image_id)}")
        for image_id, pair in pairs.items()
        if image_id not in annotated
    ]
    everything = [*pairs.values(), *alone]
    return everything, problems + _check_names(everything)


def _pairing_fault(image_id: Any, pairs: dict, annotated: set) -> str | None:
    """Kind of the problem that keeps an annotation from being an image's."""
    if not _is_id(image_id):
        return "bad_entry"
    if image_id not in pairs:
        return "annotation_without_image"
    return "duplicate_annotation" if image_id in annotated else None


def _check_images(
    entries: list[Any], image_file: Callable[[dict[str, Any]], str]
) -> tuple[dict[int | str, Pair], list[Problem]]:
    pairs: dict[int | str, Pair] = {}
    problems: list[Problem] = []
    fields: dict[str, Callable[[Any], Any]] = {
        "id": _is_id,
        "file_name": _name,
        "width": _is_length,
        "height": _is_length,
    }
    for place, entry in _objects(entries, "images", problems):
        where = _name(entry.get("file_name")) or place
        problems += _bad_fields(entry, where, fields)
        if not _is_id(entry.get("id")):
            continue
        if entry["id"] in pairs:
            problems.append(Problem("duplicate_image_id", where, f"id is {shown(entry['id'])}"))
            continue
        pair = pairs[entry["id"]] = Pair()
        if _is_length(entry.get("width")) and _is_length(entry.get("height")):
            pair.size = (entry["width"], entry["height"])
        if _name(entry.get("file_name")):
            try:
                image = image_file(entry)
            except Exception as e:  # a rule for names that the entry does not fit
                message = f"no file name follows from id {shown(entry['id'])}: {e}"
                problems.append(Problem("bad_entry", where, message))
                continue
            pair.image = _inside(entry["file_name"], image, problems)
    return pairs, problems


def _inside(given: str | None, name: str | None, problems: list[Problem]) -> str | None:
    """The name of a file; None, and a problem, when it or the name given is outside the folder."""
    bad = next((n for n in (given, name) if n and not is_file_below(n)), None)
    if bad is None:
        return name
    problems.append(Problem("file_outside_folder", bad))
    return None


def _check_segments(
    entries: Any, where: str, categories: dict[int, Category]
) -> tuple[dict[int, Segment], list[Problem]]:
    if not isinstance(entries, list):
        return {}, [Problem("bad_entry", where, f"segments_info is {shown(entries)}, no list")]
    segments: dict[int, Segment] = {}
    problems: list[Problem] = []
    for place, entry in _objects(entries, f"{where}, segments_info", problems):
        id_: Any = entry.get("id")
        if not is_segment_id(id_):
            problems.append(Problem("bad_segment_id", place, f"id is {shown(id_)}"))
        elif id_ in segments:
            problems.append(Problem("duplicate_segment_id", where, segment=id_))
        else:
            segments[id_] = _segment(entry)
            category_id = segments[id_].category_id
            category = None if category_id is None else categories.get(category_id)
            faults = _faults(entry, category)
            problems += [Problem(kind, where, message, id_) for kind, message in faults]
    stuff = Counter(
        s.category_id
        for s in segments.values()
        if s.category_id in categories and not categories[s.category_id].isthing
    )
    problems += [
        Problem("stuff_in_pieces", where, f"{n} segments of {shown(categories[id_].name)}")
        for id_, n in stuff.items()
        if n > 1
    ]
    return segments, problems


def _faults(segment: dict[str, Any], category: Category | None) -> Iterator[tuple[str, str]]:
    """Kinds and messages of what is wrong with one segment, pixels aside."""
    isthing, iscrowd = segment.get("isthing"), segment.get("iscrowd", 0)
    if category is None:
        yield "unknown_category", f"category_id is {shown(segment.get('category_id'))}"
    elif "isthing" in segment and isthing != category.isthing:
        message = f"isthing is {shown(isthing)}, but {shown(category.name)} is {_kind(category)}"
        yield "segment_kind_differs", message
    if not isinstance(iscrowd, int) or iscrowd not in (0, 1):
        yield "bad_entry", f"iscrowd is {shown(iscrowd)}; it must be 0 or 1"
    elif iscrowd and category is not None and not category.isthing:
        yield "crowd_stuff", f"of {shown(category.name)}"


def _segment(entry: dict[str, Any]) -> Segment:
    category_id, area, bbox = (entry.get(k) for k in ("category_id", "area", "bbox"))
    is_box = isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))
    return Segment(
        category_id if isinstance(category_id, int) and _is_number(category_id) else None,
        area if _is_number(area) or "area" not in entry else shown(area),
        bbox if is_box or "bbox" not in entry else shown(bbox),
        bool(entry.get("iscrowd", 0)),
    )


def _check_names(pairs: list[Pair]) -> list[Problem]:
    problems = []
    for kind in ("image", "png"):
        names = [getattr(p, kind) for p in pairs]
        counts = Counter(os.path.normpath(n) for n in names if n)
        problems += [
            Problem("duplicate_file_name", name, f"the {kind} of {n} entries")
            for name, n in counts.items()
            if n > 1
        ]
    return problems


def _objects(
    entries: list[Any], name: str, problems: list[Problem]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries that are objects, each with its place; the others become problems."""
    for i, entry in enumerate(entries):
        if isinstance(entry, dict):
            yield f"{name}[{i}]", entry
        else:
            problems.append(Problem("bad_entry", f"{name}[{i}]", f"{shown(entry)} is no object"))


def _bad_fields(
    entry: dict[str, Any], where: str, fields: dict[str, Callable[[Any], Any]]
) -> list[Problem]:
    return [
        Problem("bad_entry", where, f"{key} is {shown(entry.get(key))}")
        for key, is_sound in fields.items()
        if not is_sound(entry.get(key))
    ]


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _kind(category: Category) -> str:
    return "a thing" if category.isthing else "stuff"
