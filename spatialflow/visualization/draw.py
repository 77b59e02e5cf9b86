"""Segments over a picture: the one drawing of demo, ``draw``, video and the served page.

A pixel gets the colour of the segment that the map names, so that holes stay free; borders are
lines of whole pixels. The work goes in stripes of rows: beyond the result it needs a few megabytes,
whatever the size of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from spatialflow.data.categories import Categories
from spatialflow.data.segments import class_of
from spatialflow.utils.runs import runs

from .colors import RGB, segment_colors
from .labels import draw_labels

OPACITY = 0.55
_BORDER_COLOR = (255, 255, 255)
_STRIPE = 2**19
"""Pixels that are drawn at a time."""
_PIXELS_PER_BORDER = 1200
"""Of the longer side: a picture that is shown smaller than it is keeps its borders."""


class DrawnSegment(NamedTuple):
    """How a segment is drawn.

    Attributes:
        id: its value in the map.
        color: RGB.
        label: what is written on it; empty for nothing.
    """

    id: int
    color: RGB
    label: str = ""


def drawn_segments(
    segments: Sequence[Mapping[str, Any]], categories: Categories
) -> list[DrawnSegment]:
    """How the segments of a panoptic output or of a dataset dict are drawn.

    Args:
        segments: with ``id``, ``isthing``, ``category_id`` (thing class or stuff label) and, where
            there are, ``score`` and ``track_id``, by which a shade stays with an object.
        categories: the classes.
    """
    classes = [class_of(s, categories) for s in segments]
    colors = segment_colors(classes, [s.get("track_id") for s in segments])
    drawn = []
    for s, category, color in zip(segments, classes, colors, strict=True):
        score = f" {s['score']:.0%}" if s["isthing"] and "score" in s else ""
        drawn.append(DrawnSegment(int(s["id"]), color, f"{category.name}{score}"))
    return drawn


def draw_panoptic(
    image: np.ndarray,
    ids: np.ndarray,
    segments: Sequence[DrawnSegment],
    opacity: float = OPACITY,
    labels: bool = True,
) -> np.ndarray:
    """The segments drawn over a picture; void and ids without a segment are left as they are.

    Args:
        image: (H, W, 3) uint8 in BGR order.
        ids: (H, W) integer segment ids.
        segments: those to draw.
        opacity: of the colours, from 0 to 1.
        labels: whether names are written on the segments.

    Returns:
        (H, W, 3) uint8 in BGR order.

    Raises:
        ValueError: the sizes differ.
    """
    if image.shape[:2] != ids.shape:
        raise ValueError(f"The picture is {image.shape[:2]} in size, its map {ids.shape}.")
    height, width = ids.shape
    drawn = np.empty_like(image, order="C")
    palette = _Palette(segments)
    border = max(1, round(max(height, width) / _PIXELS_PER_BORDER))
    step = max(1, _STRIPE // width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        _blend(image[rows], palette.colors(ids[rows]), opacity, drawn[rows])
        # The map of the rows around too, for the border between this stripe and the next ones.
        before = min(border, top)
        around = ids[top - before : rows.stop + border]
        lines = _borders(around, border)[before : before + rows.stop - top]
        drawn[rows][lines] = _BORDER_COLOR
    if labels:
        draw_labels(drawn, ids, [(s.id, s.label) for s in segments])
    return drawn


class _Palette:
    """Looks up the colour of ids: BGR, and in a fourth byte whether the id is drawn."""

    def __init__(self, segments: Sequence[DrawnSegment]) -> None:
        ordered = sorted(segments, key=lambda s: s.id)
        self._ids = np.array([s.id for s in ordered], np.int64)
        bgra = np.array([[0] * 4, *((*s.color[::-1], 255) for s in ordered)], np.uint8)
        self._colors = bgra.view(np.uint32).ravel()

    def colors(self, ids: np.ndarray) -> np.ndarray:
        """(H, W, 4) uint8 for an (H, W) map."""
        starts, lengths = runs(ids)
        values = ids.ravel()[starts]
        place = np.searchsorted(self._ids, values)
        known = np.append(self._ids, -1)[place] == values
        pixels = np.repeat(self._colors[np.where(known, place + 1, 0)], lengths)
        return pixels.view(np.uint8).reshape(*ids.shape, 4)


def _blend(image: np.ndarray, colors: np.ndarray, opacity: float, out: np.ndarray) -> None:
    """Write an image (H, W, 3) with colours (H, W, 4) over it, where their fourth byte is set."""
    cv2.addWeighted(colors[:, :, :3], opacity, image, 1 - opacity, 0, dst=out)
    free = colors[:, :, 3] == 0
    out[free] = image[free]


def _borders(ids: np.ndarray, thickness: int) -> np.ndarray:
    """(H, W) bool: lines of a thickness in pixels where the values of a map change."""
    lines: np.ndarray = np.zeros(ids.shape, np.uint8)
    lines[:, :-1] |= ids[:, 1:] != ids[:, :-1]
    lines[:-1] |= ids[1:] != ids[:-1]
    if thickness > 1:
        lines = cv2.dilate(lines, np.ones((thickness, thickness), np.uint8))
    return lines.view(bool)
