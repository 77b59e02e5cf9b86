"""The transforms of test-time augmentation, and how to undo them.

Legend: H x W the size of the original image and of the output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from torch import Tensor

from spatialflow.data.mapper import build_resize


class View(NamedTuple):
    """How a model is shown an image.

    Attributes:
        resize: augmentation that resizes the image to the view's scale.
        flip: whether the image is mirrored, left to right.
        weight: weight of the view in the means over all views.
    """

    resize: T.Augmentation
    flip: bool
    weight: float


def views_from_config(cfg: CfgNode) -> list[View]:
    """The views of one model: those of TEST.AUG, or the one of plain inference.

    Raises:
        ValueError: a scale is no pair of longer and shorter side, or the weights do not fit.
    """
    aug = cfg.TEST.AUG
    if not aug.ENABLED:
        resize = build_resize(cfg, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        return [View(resize, flip=False, weight=1.0)]
    scales = aug.SCALES or [(aug.MAX_SIZE, size) for size in aug.MIN_SIZES]
    if len(cfg.INPUT.FIXED_SIZE):
        if aug.SCALES:
            raise ValueError(
                "TEST.AUG.SCALES has no effect with INPUT.FIXED_SIZE, which all views have; leave "
                "one of them empty."
            )
        scales = [(max(cfg.INPUT.FIXED_SIZE), min(cfg.INPUT.FIXED_SIZE))]
    weights = aug.WEIGHTS or [1.0] * len(scales)
    if len(weights) != len(scales) or any(weight <= 0 for weight in weights):
        raise ValueError(
            f"TEST.AUG.WEIGHTS is {weights}; give a number over 0 for each of the {len(scales)} "
            "scales, or leave it empty."
        )
    views = []
    for scale, weight in zip(scales, weights, strict=True):
        longer, shorter = _parse_scale(scale)
        resize = build_resize(cfg, shorter, longer)
        flips = (False, True) if aug.FLIP else (False,)
        views += [View(resize, flip, weight) for flip in flips]
    return views


def apply_view(view: View, image: Tensor) -> Tensor:
    """The image (3, H, W) uint8 as the view has it, (3, h, w) uint8."""
    pixels = T.AugInput(np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0)))
    view.resize(pixels)
    shown = torch.from_numpy(np.ascontiguousarray(pixels.image.transpose(2, 0, 1)))
    return shown.flip(-1) if view.flip else shown


def flip_instances(instances: Instances) -> Instances:
    """The same instances in the mirrored image; boxes are all that changes."""
    width = instances.image_size[1]
    boxes = instances.pred_boxes.tensor
    flipped = Instances(instances.image_size, **instances.get_fields())
    flipped.pred_boxes = Boxes(
        torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
    )
    return flipped


def _parse_scale(scale: Any) -> tuple[int, int]:
    try:
        longer, shorter = scale
        if not 0 < shorter <= longer:
            raise ValueError
    except (TypeError, ValueError) as e:
        raise ValueError(
            f"TEST.AUG.SCALES: {scale!r} is no pair [longer side, shorter side] in pixels."
        ) from e
    return longer, shorter
