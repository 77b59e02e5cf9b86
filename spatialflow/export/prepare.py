"""A copy of a model whose parts can be exported, and what cannot be."""

from __future__ import annotations

from copy import deepcopy

import torch.nn.functional as F
from torch import Tensor, nn

from spatialflow.errors import UserError
from spatialflow.inference.folding import fold_batch_norms
from spatialflow.inference.optimized import OptimizedModel
from spatialflow.modeling.panoptic_model import PanopticModel

MOST_DIVISIBLE = 32
"""Stride of the deepest layer whose padding depends on the image size, see :class:`EvenConv2d`."""


class EvenConv2d(nn.Module):
    """timm's ``Conv2dSame`` for sides that are multiples of its stride: the padding is constant.

    Args:
        conv: the convolution, whose parameters are used.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            0,
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
        )
        self.conv.load_state_dict(conv.state_dict())
        self.pad: list[int] = []
        for side in (1, 0):
            total = max(conv.dilation[side] * (conv.kernel_size[side] - 1) + 1, conv.stride[side])
            total -= conv.stride[side]
            self.pad += [total // 2, total - total // 2]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        return self.conv(F.pad(x, self.pad))


def prepare(model: PanopticModel) -> PanopticModel:
    """A copy on the CPU, with batch norms folded, fused parts and paddings of a constant size.

    Args:
        model: in evaluation mode; it is not changed.

    Raises:
        UserError: the images of the model are padded to squares, or not to multiples of 32.
    """
    if isinstance(model, OptimizedModel):  # folded and fused already
        model = model.model
    parts = deepcopy(model).cpu().eval().requires_grad_(False)
    fold_batch_norms(parts)
    parts.fuse()
    backbone = getattr(getattr(parts, "model", parts), "backbone", None)
    square = (getattr(backbone, "padding_constraints", None) or {}).get("square_size", 0)
    if square or parts.size_divisibility < 1 or parts.size_divisibility % MOST_DIVISIBLE:
        raise UserError(
            "This model cannot be exported: its images are padded "
            + (
                f"to squares of {square}"
                if square
                else f"to multiples of {parts.size_divisibility}"
            )
            + f" pixels, and export needs multiples of {MOST_DIVISIBLE}."
        )
    return replace_same_padding(parts)


def replace_same_padding(model: PanopticModel) -> PanopticModel:
    """Give a model :class:`EvenConv2d` in place of timm's convolutions that pad by the image size.

    Args:
        model: changed in place.
    """
    try:
        from timm.layers import Conv2dSame
    except ModuleNotFoundError:
        return model
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv2dSame):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, EvenConv2d(module))
    return model
