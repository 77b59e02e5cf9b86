"""The segments of a panoptic map in the dataset's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .categories import Categories, Category
from .targets import measure_segments


def class_of(segment: Mapping[str, Any], categories: Categories) -> Category:
    """The class of a segment in Detectron2's terms (``isthing``, contiguous ``category_id``)."""
    classes = categories.things if segment["isthing"] else categories.stuff
    return classes[segment["category_id"]]


def segments_as_json(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], categories: Categories
) -> list[dict[str, Any]]:
    """Class, score, area and box of each segment, ready for JSON.

    Args:
        ids: (H, W) segment ids.
        segments: segments of the map in Detectron2's terms, with ``score`` where there are scores.
        categories: the classes.

    Returns:
        A dict a segment: ``id`` (its value in the map), ``category_id`` (the dataset's),
        ``category`` (its name), ``isthing``, ``score`` (things only), ``area`` in pixels and
        ``bbox``, x, y, width, height.
    """
    found, areas, boxes = measure_segments(ids)
    place = {id_: i for i, id_ in enumerate(found.tolist())}
    described = []
    for s in segments:
        category = class_of(s, categories)
        has_score = s["isthing"] and "score" in s
        described.append(
            {
                "id": int(s["id"]),
                "category_id": category.id,
                "category": category.name,
                "isthing": bool(s["isthing"]),
                **({"score": round(float(s["score"]), 4)} if has_score else {}),
                "area": int(areas[place[s["id"]]]),
                "bbox": boxes[place[s["id"]]].tolist(),
            }
        )
    return described
