"""RoIAlign over the levels of a pyramid, and the masks of regions, in tensors of fixed sizes.

Legend: K regions, M the side of a predicted mask, H x W the size of the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor

from spatialflow.errors import UserError

LEAST_SIDE = 1e-6
"""Sides of a box are at least this many pixels where they divide."""


def pool_regions(pooler: ROIPooler, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """What ``pooler`` gives for the boxes of one image, (K, C, M, M).

    Every box is pooled on every level; on those that are not its own it is empty, which costs
    little, and what comes out does not count.

    Args:
        pooler: Detectron2's, with RoIAlign.
        features: (1, C, h, w) of each level.
        boxes: (K, 4) in pixels of the network's input.

    Raises:
        UserError: the pooler has other layers.
    """
    levels = list(pooler.level_poolers)
    if not all(isinstance(level, ROIAlign) for level in levels):
        raise UserError("Only models whose MODEL.*.POOLER_TYPE is ROIAlign(V2) can be exported.")
    own = assign_boxes_to_levels(
        [Boxes(boxes)],
        pooler.min_level,
        pooler.max_level,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )
    total: Tensor | None = None
    for i, (level, feature) in enumerate(zip(levels, features, strict=True)):
        here = own == i
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes * here[:, None]], dim=1)
        pooled = level(feature, rois)
        pooled = torch.where(here[:, None, None, None], pooled, 0.0)
        total = pooled if total is None else total + pooled
    assert total is not None
    return total


def masks_of_classes(logits: Tensor, classes: Tensor) -> Tensor:
    """Mask probabilities (K, M, M) of the class of each region.

    Args:
        logits: (K, C, M, M), or (K, 1, M, M) of a head that knows no classes.
        classes: (K,).
    """
    if logits.shape[1] > 1:
        index = classes[:, None, None, None].expand(-1, 1, logits.shape[2], logits.shape[3])
        logits = logits.gather(1, index)
    return logits[:, 0].sigmoid()


def sampling_weights(positions: Tensor, low: Tensor, high: Tensor, side: int) -> Tensor:
    """(n, M): how much each row (or column) of a mask counts for each row of the map.

    Bilinear sampling is separable, so that two products of matrices paste a mask; what is
    outside the mask is 0, as in Detectron2's ``paste_masks_in_image``.

    Args:
        positions: (n,) the rows of the map.
        low, high: scalars, the sides of the box.
        side: M.
    """
    at = (positions + 0.5 - low) / (high - low).clamp(min=LEAST_SIDE) * side - 0.5
    return (1 - (at[:, None] - torch.arange(side)[None]).abs()).clamp(min=0)


def paste(mask: Tensor, box: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(H, W) bool: the pixels of a mask (M, M) in its box (4,).

    Args:
        mask: probabilities; a pixel of at least 0.5 belongs to the mask.
        box: in pixels of the map.
        rows, columns: (H,) and (W,) of the map, float.
    """
    vertical = sampling_weights(rows, box[1], box[3], mask.shape[0])
    horizontal = sampling_weights(columns, box[0], box[2], mask.shape[1])
    return vertical @ mask @ horizontal.T >= 0.5
