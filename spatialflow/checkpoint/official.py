"""The weights that SpatialFlow's authors released, under this project's names and orders.

Their checkpoints come from mmdetection 2.3. Besides the names, two orders differ: anchors count
ratios in the outer loop and scales in the inner one, Detectron2 the other way round; and the stuff
labels are the category ids in ascending order, 'other' (183) among them, where this project has
'other' at 0. Everything else that differs is a matter of the config, configs/released/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .mmdetection import Rules, plus, rename_by, renamed

OTHER_CATEGORY_ID = 183
"""The category that the authors give to all things on the stuff map."""

CLS, REG, STUFF = "bbox_head.retina_cls.", "bbox_head.retina_reg.", "stuff_head.conv."
"""Their layers whose output channels have another order here."""


# Theirs, ours. The sub-networks of things are called mask there.
_RULES: Rules = [
    (r"neck\.lateral_convs\.(\d)\.conv\.", plus(3, "backbone.fpn_lateral#.")),
    (r"neck\.fpn_convs\.([0-2])\.conv\.", plus(3, "backbone.fpn_output#.")),
    (r"neck\.fpn_convs\.([34])\.conv\.", plus(3, "backbone.top_block.p#.")),
    (r"bbox_head\.(cls|reg|stuff)_convs\.(\d)\.conv\.", r"subnets.\1.\2.conv."),
    (r"bbox_head\.mask_convs\.(\d)\.conv\.", r"subnets.thing.\1.conv."),
    (r"bbox_head\.(cls|stuff)_spatial_flow_convs\.(\d)\.conv\.", r"subnets.\1.\2.flows.reg.conv."),
    (r"bbox_head\.mask_spatial_flow_convs\.(\d)\.conv\.", r"subnets.thing.\1.flows.reg.conv."),
    (r"bbox_head\.stuff_mask_flow_convs\.(\d)\.conv\.", r"subnets.thing.\1.flows.stuff.conv."),
    (re.escape(CLS), "detector.cls_score."),
    (re.escape(REG), "detector.bbox_pred."),
    (r"mask_head\.convs\.(\d)\.conv\.", plus(1, "thing_head.mask_head.mask_fcn#.")),
    (r"mask_head\.upsample\.", "thing_head.mask_head.deconv."),
    (r"mask_head\.conv_logits\.", "thing_head.mask_head.predictor."),
    (r"stuff_head\.lateral_convs\.(\d)\.(\d)\.conv\.", plus(3, r"stuff_head.p#.\2.")),
    (r"stuff_head\.lateral_convs\.(\d)\.(\d)\.gn\.", plus(3, r"stuff_head.p#.\2.norm.")),
    (re.escape(STUFF), "stuff_head.predictor."),
]


def rename(key: str) -> str | None:
    """This project's name of one of their tensors; None for a name that they do not have."""
    return rename_by(_RULES, key)


def other_label(stuff_category_ids: Iterable[int]) -> int:
    """Their stuff label of 'other', 36 on COCO.

    Args:
        stuff_category_ids: ids of the stuff classes without 'other'.
    """
    return sorted([*stuff_category_ids, OTHER_CATEGORY_ID]).index(OTHER_CATEGORY_ID)


def convert_state_dict(
    state: Mapping[str, Tensor], *, other_label: int, num_scales: int = 3, num_ratios: int = 3
) -> dict[str, Tensor]:
    """Rename and reorder their state dict, or a part of it.

    Counters of batch norm are left out; tensors of their half-precision training become float32.

    Args:
        state: their tensors by their names.
        other_label: their stuff label of 'other', see :func:`other_label`.
        num_scales, num_ratios: of the anchors of a cell.

    Returns:
        Tensors by :func:`rename`'s names.

    Raises:
        ValueError: names that they do not have, or a layer with another number of channels than
            the anchors or labels need.
    """
    names = renamed(state, rename, "the authors' SpatialFlow")
    anchors = torch.arange(num_ratios * num_scales).view(num_ratios, num_scales).T.flatten()
    converted = {}
    for key, name in names.items():
        value = state[key].float()
        if key.startswith((CLS, REG)):
            value = _reorder_anchors(key, value, anchors)
        elif key.startswith(STUFF):
            value = _other_first(key, value, other_label)
        converted[name] = value
    return converted


def _reorder_anchors(key: str, value: Tensor, order: Tensor) -> Tensor:
    """Put the groups of output channels, one for each anchor, into ``order``."""
    if len(value) % len(order):
        raise ValueError(f"{key} has {len(value)} channels, no multiple of {len(order)} anchors.")
    return value.unflatten(0, (len(order), -1))[order].flatten(0, 1)


def _other_first(key: str, value: Tensor, other_label: int) -> Tensor:
    if other_label >= len(value):
        raise ValueError(
            f"{key} has {len(value)} channels, so 'other' cannot be number {other_label}: the "
            "weights have other stuff classes."
        )
    order = [other_label, *(label for label in range(len(value)) if label != other_label)]
    return value[order]
