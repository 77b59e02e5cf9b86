"""Pictures small enough to live in a page: the photograph, and maps of its segments."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np

from spatialflow.data.categories import Category
from spatialflow.data.mapper import read_image
from spatialflow.data.targets import index_map
from spatialflow.utils.runs import runs
from spatialflow.visualization import segment_colors

from .outcomes import ImageOutcome, describe_segments, read_maps
from .saved import SavedImage

MAX_SIDE = 640
"""Pixels; larger images are reduced."""
_JPEG_QUALITY = 80


def draw_image(image: SavedImage, outcome: ImageOutcome, categories: Sequence[Category]) -> dict:
    """Everything the page shows of one image.

    Args:
        image: its files are read here.
        outcome: the outcome of its segments.
        categories: the classes in the order of the page.

    Returns:
        ``width``, ``height`` of the pictures; ``photo``, a JPEG as data URI, None where the image
        file cannot be read; ``truth`` and ``predicted``: ``runs``, see :func:`encode_runs`, and
        ``segments``, see :func:`spatialflow.tools.report.outcomes.describe_segments`, with the
        number of their ``class`` in the page and their ``color``.
    """
    maps = read_maps(image)
    described = describe_segments(outcome, *maps, image)
    size = _reduced_size(maps[0])
    class_number = {c.id: i for i, c in enumerate(categories)}
    sides = {}
    for side, ids, segments in zip(("truth", "predicted"), maps, described, strict=True):
        for s in segments:
            s["class"] = class_number[s.pop("category_id")]
        colors = segment_colors([categories[s["class"]] for s in segments])
        segments = [{**s, "color": color} for s, color in zip(segments, colors, strict=True)]
        source = image.truth_segments if side == "truth" else image.segments
        index = index_map(ids, source, image.truth_png if side == "truth" else image.png)
        small = cv2.resize(index, size, interpolation=cv2.INTER_NEAREST)
        sides[side] = {"runs": encode_runs(small), "segments": segments}
    return {"width": size[0], "height": size[1], "photo": _photo(image.file_name, size), **sides}


def encode_runs(index: np.ndarray) -> str:
    """Run lengths of an index map, in base64.

    Args:
        index: (H, W) numbers below 65536, W too.

    Returns:
        Pairs of little-endian 16-bit numbers, value and length, along the rows; no run crosses the
        end of a row.
    """
    starts, lengths = runs(index)
    pairs = np.stack([index.ravel()[starts], lengths], axis=1).astype("<u2")
    return base64.b64encode(pairs.tobytes()).decode()


def _reduced_size(ids: np.ndarray) -> tuple[int, int]:
    height, width = ids.shape
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _photo(path: str, size: tuple[int, int]) -> str | None:
    try:
        image = read_image(path, "BGR")
    except (OSError, ValueError):
        return None
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
