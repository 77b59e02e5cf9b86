"""Names on segments: where each is at its widest, the largest first, none over another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SEARCHED_SIDE = 320
"""Places are looked for in a map of at most so many pixels a side."""
_FONT_SIZES = (11, 120)
_PIXELS_PER_FONT_SIZE = 70
_MIN_WIDTH = 0.7
"""A segment less wide than this share of a label's height is not named."""
_BACKGROUND = 0.35
"""What is left of the picture behind a name."""


def draw_labels(image: np.ndarray, ids: np.ndarray, labels: Sequence[tuple[int, str]]) -> None:
    """Write names on the segments of a picture, in place.

    Args:
        image: (H, W, 3) uint8.
        ids: (H, W) segment ids.
        labels: id and name of each segment; an empty name is left out.
    """
    height, width = ids.shape
    low, high = _FONT_SIZES
    size = min(max(round((height * width) ** 0.5 / _PIXELS_PER_FONT_SIZE), low), high)
    step = -(-max(height, width) // _SEARCHED_SIDE)
    small = np.ascontiguousarray(ids[::step, ::step])
    places = [(*_widest(small, id_), text) for id_, text in labels if text]
    taken: list[tuple[int, int, int, int]] = []
    for radius, (x, y), text in sorted(places, key=lambda p: -p[0]):
        if 2 * radius * step < _MIN_WIDTH * size:
            continue
        box = _box_around(x * step, y * step, _text_mask(text, size), (height, width))
        if box is not None and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            _write(image, _text_mask(text, size), box)


def _widest(ids: np.ndarray, id_: int) -> tuple[float, tuple[int, int]]:
    """Radius and centre (x, y) of the largest disk within a segment."""
    mask = np.pad((ids == id_).astype(np.uint8), 1)  # the picture's edge ends a segment, too
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_3)
    _, radius, _, (x, y) = cv2.minMaxLoc(distance)
    return radius, (x - 1, y - 1)


@lru_cache(maxsize=512)
def _text_mask(text: str, size: int) -> np.ndarray:
    """(h, w, 1) opacity of a text from 0 to 1, with a margin."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    margin = max(2, size // 5)
    extent = (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin)
    picture = Image.new("L", extent)
    ImageDraw.Draw(picture).text((margin - left, margin - top), text, fill=255, font=font)
    return np.asarray(picture, np.float32)[:, :, None] / 255


def _box_around(
    x: int, y: int, mask: np.ndarray, size: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of a text near a point, within the picture; None: no room."""
    height, width = mask.shape[:2]
    if height > size[0] or width > size[1]:
        return None
    left = min(max(x - width // 2, 0), size[1] - width)
    top = min(max(y - height // 2, 0), size[0] - height)
    return left, top, left + width, top + height


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _write(image: np.ndarray, mask: np.ndarray, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    patch = image[top:bottom, left:right]
    patch[:] = patch * _BACKGROUND * (1 - mask) + 255 * mask
