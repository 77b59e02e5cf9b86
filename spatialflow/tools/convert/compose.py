"""From a class of every pixel and the objects among them to panoptic segments: pure functions.

Legend: H, W are the map's size. A *label map* holds category ids, ``NO_LABEL`` for void. An *object
map* holds 0 where no object is, and the object's number elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spatialflow.data.targets import measure_segments

NO_LABEL = -1
UNCOVERED = ("crowd", "void")
"""What becomes of pixels that are labelled as a thing, but belong to no object."""


@dataclass(frozen=True)
class Object:
    """What an object is: its category and whether it is a crowd region."""

    category_id: int
    iscrowd: int = 0


def compose(
    labels: np.ndarray,
    object_map: np.ndarray,
    objects: Mapping[int, Object],
    things: Collection[int],
    uncovered: str,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segments of one image. Objects win over labels.

    Args:
        labels: (H, W) label map.
        object_map: (H, W) object map.
        objects: the object of each number in the object map.
        things: ids of the thing categories.
        uncovered: one of ``UNCOVERED``. With "crowd" such pixels become one crowd region a class.

    Returns:
        (H, W) int32 segment ids, 0 for void; the segments that have a pixel, with ``id``,
        ``category_id`` and ``iscrowd``.
    """
    if uncovered == "void":
        labels = np.where(np.isin(labels, list(things)), NO_LABEL, labels)
    first_object = max(int(labels.max()), 0) + 1
    code = np.where(object_map > 0, object_map + (first_object - 1), labels)
    codes = measure_segments(code)[0].tolist()
    segments: list[dict] = []
    id_of: list[int] = []
    for c in codes:
        if c == NO_LABEL:
            id_of.append(0)
            continue
        what = objects[c - first_object + 1] if c >= first_object else Object(c, int(c in things))
        id_of.append(_segment_id(len(segments) + 1))
        segments.append({"id": id_of[-1], "category_id": what.category_id, "iscrowd": what.iscrowd})
    return np.array(id_of, np.int32)[np.searchsorted(codes, code)], segments


def majority_labels(labels: np.ndarray, object_map: np.ndarray) -> dict[int, int]:
    """The label that most pixels of an object have, by the object's number."""
    numbers = object_map[object_map > 0]
    pairs, counts = np.unique(
        np.stack([numbers, labels[object_map > 0]]), axis=1, return_counts=True
    )
    best: dict[int, tuple[int, int]] = {}
    for (number, label), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        best[number] = max(best.get(number, (0, 0)), (count, label))
    return {number: label for number, (_, label) in best.items()}


def _segment_id(number: int) -> int:
    # An odd multiplier permutes the three bytes, so that the segments have different colours when
    # the PNG is looked at.
    return number * 0x5A17C3 % 2**24
