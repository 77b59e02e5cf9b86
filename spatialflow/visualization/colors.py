"""Colours of segments: that of the class, and for things a shade of it for each instance."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from spatialflow.data.categories import Category

RGB = tuple[int, int, int]

_GOLDEN = 0.6180339887498949
"""Multiples of it, without their whole parts, are spread evenly however many there are."""
_LIGHTNESS_RANGE = 0.4
_DARKEST, _LIGHTEST = 0.2, 0.85


def segment_colors(
    classes: Sequence[Category], numbers: Sequence[int | None] | None = None
) -> list[RGB]:
    """The colour of each segment of a picture.

    Stuff has the colour of its class. Things have shades of it, the first of a class the colour
    itself, so that instances differ and ground truth and prediction of a class look alike.

    Args:
        classes: the class of each segment.
        numbers: for a shade that stays with an object over the frames of a video, its number; None:
            the segment's place among those of its class.

    Returns:
        RGB from 0 to 255.
    """
    seen: Counter[int] = Counter()
    colors = []
    for i, category in enumerate(classes):
        number = None if numbers is None else numbers[i]
        if number is None:
            number = seen[category.id]
            seen[category.id] += 1
        colors.append(
            instance_shade(category.color, number) if category.isthing else category.color
        )
    return colors


@lru_cache(maxsize=4096)
def instance_shade(color: RGB, number: int) -> RGB:
    """The shade of an instance: hue and saturation of the class, another lightness.

    Args:
        color: RGB of the class.
        number: 0 is the colour itself.
    """
    if number == 0:
        return color
    hue, lightness, saturation = colorsys.rgb_to_hls(*(v / 255 for v in color))
    # A range that holds the colour and leaves out what is nearly black or white.
    low = min(max(lightness - _LIGHTNESS_RANGE / 2, _DARKEST), _LIGHTEST - _LIGHTNESS_RANGE)
    place = ((lightness - low) / _LIGHTNESS_RANGE + number * _GOLDEN) % 1
    shade = colorsys.hls_to_rgb(hue, low + place * _LIGHTNESS_RANGE, saturation)
    red, green, blue = (round(255 * v) for v in shade)
    return red, green, blue
