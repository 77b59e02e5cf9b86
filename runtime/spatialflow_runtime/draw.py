"""Pictures of panoptic maps, with Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .model import PanopticModel

SHARE = 0.5
"""How much of a pixel's colour is that of its segment."""
STEPS = 5
"""Instances of one class differ by this many shades."""


def colours(model: PanopticModel, segments: list[dict[str, Any]]) -> np.ndarray:
    """(n + 1, 3) uint8: the colour of each id; black for 0."""
    table = np.zeros((len(segments) + 1, 3), np.uint8)
    for segment in segments:
        colour = np.array(model.category(segment)["color"], dtype=float)
        if segment["isthing"]:
            colour = colour * (1 - 0.1 * (segment["id"] % STEPS))
        table[segment["id"]] = colour
    return table


def draw(model: PanopticModel, image: np.ndarray, output: Mapping[str, Any]) -> Image.Image:
    """The picture with its segments, their edges and the names of their classes.

    Args:
        model: the model of the output.
        image: (H, W, 3) uint8 in RGB order.
        output: what calling the model returned for the image.
    """
    ids, segments = output["panoptic_seg"]
    painted = colours(model, segments)[ids].astype(float)
    mixed = np.where((ids > 0)[..., None], (1 - SHARE) * image + SHARE * painted, image)
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    mixed[edge] = 255
    picture = Image.fromarray(mixed.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for segment in segments:
        rows, columns = np.nonzero(ids == segment["id"])
        at = (float(np.median(columns)), float(np.median(rows)))
        pen.text(
            at,
            model.category(segment)["name"],
            fill="white",
            anchor="mm",
            stroke_width=1,
            stroke_fill="black",
        )
    return picture


def coded_ids(ids: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: ids as COCO's panoptic PNGs have them, R + 256 G + 65536 B."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=2).astype(np.uint8)
