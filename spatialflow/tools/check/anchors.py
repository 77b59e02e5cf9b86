"""Anchors that fit the things of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVELS = 5
"""P3 to P7."""
SCALES = (1, 2 ** (1 / 3), 2 ** (2 / 3))
"""Sizes of the anchors of a level over its first one (Lin et al., "Focal Loss", Sec. 4)."""
COCO_FIRST_SIZE, COCO_RATIOS = 32, (0.5, 1.0, 2.0)
FIRST_SIZES = (8, 16, 32, 64, 128)
POSITIVE_IOU = 0.5
"""IoU from which on RetinaNet trains an anchor on a box."""


@dataclass(frozen=True)
class AnchorFit:
    """The shapes of boxes, and anchors for them.

    Attributes:
        boxes: how many there are.
        sides: roots of the areas in pixels that 10, 50 and 90 % of the boxes stay below.
        aspect_ratios: height over width, of the middle of each third of the boxes.
        sizes: of the anchors on P3 to P7, in pixels of the images as they are.
        covered: share of the boxes with which an anchor of the same centre has an IoU of 0.5.
        covered_by_coco: the same with the anchors for COCO.
    """

    boxes: int
    sides: tuple[float, ...]
    aspect_ratios: tuple[float, ...]
    sizes: list[list[float]]
    covered: float
    covered_by_coco: float

    def __str__(self) -> str:
        small, middle, large = (f"{side:.0f}" for side in self.sides)
        ratios = ", ".join(f"{x:g}" for x in self.aspect_ratios)
        first = [sizes[:1] for sizes in self.sizes]
        return (
            f"Things: {self.boxes} boxes; 10 % have a side (root of the area) below {small} "
            f"pixels, 50 % below {middle}, 90 % below {large}; height / width {ratios}.\n"
            f"Anchors that fit: MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS [[{ratios}]]\n"
            f"  and SIZES {self.sizes},\n"
            f"  which reach an IoU of {POSITIVE_IOU:g} with {self.covered:.0%} of the boxes "
            f"(those for COCO: {self.covered_by_coco:.0%}). Sizes are in pixels of the images as "
            "they are: where INPUT.MIN_SIZE_TEST resizes images, multiply by the same factor.\n"
            'With MODEL.SPATIALFLOW.DETECTOR "GFL", as in own_data/spatialflow_lite0.yaml, one '
            f"anchor a cell is enough: ASPECT_RATIOS [[1.0]] and SIZES {first}."
        )


def fit_anchors(sides: Sequence[tuple[float, float]]) -> AnchorFit | None:
    """Anchors for boxes.

    Args:
        sides: width and height of each box in pixels.

    Returns:
        None without boxes.
    """
    if not sides:
        return None
    boxes = np.asarray(sides, dtype=np.float64)
    root = np.sqrt(boxes.prod(axis=1))
    thirds = np.quantile(np.log(boxes[:, 1] / boxes[:, 0]), [1 / 6, 1 / 2, 5 / 6])
    ratios = tuple(dict.fromkeys(float(f"{np.exp(x):.2g}") for x in thirds))
    share, first = max((_covered(boxes, first, ratios), first) for first in FIRST_SIZES)
    return AnchorFit(
        boxes=len(boxes),
        sides=tuple(np.quantile(root, [0.1, 0.5, 0.9]).round(1).tolist()),
        aspect_ratios=ratios,
        sizes=[[round(x, 2) for x in level] for level in _sizes(first)],
        covered=share,
        covered_by_coco=_covered(boxes, COCO_FIRST_SIZE, COCO_RATIOS),
    )


def _sizes(first: float) -> list[list[float]]:
    return [[first * 2**level * scale for scale in SCALES] for level in range(LEVELS)]


def _covered(boxes: np.ndarray, first: float, ratios: Sequence[float]) -> float:
    """Share of the boxes (n, 2) with which an anchor of the same centre has POSITIVE_IOU."""
    sizes, ratio = np.asarray(_sizes(first)).reshape(-1, 1), np.asarray(ratios)
    anchors = np.stack([sizes / np.sqrt(ratio), sizes * np.sqrt(ratio)], axis=-1).reshape(-1, 2)
    best = np.zeros(len(boxes))
    for anchor in anchors:
        common = np.minimum(boxes, anchor).prod(axis=1)
        np.maximum(best, common / (boxes.prod(axis=1) + anchor.prod() - common), out=best)
    return float((best >= POSITIVE_IOU).mean())
