"""The Pyramid Pooling Module of the semantic branch (Sec. 2.1; Zhao et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

BINS = (1, 2, 3, 6)
"""PSPNet's. *Reading*: the paper only names the module."""


class PyramidPooling(nn.Module):
    """A feature together with its means over the cells of coarse grids.

    Args:
        channels: C, of the input, of each grid's feature and of the output.
        norm: of every convolution. For "GN" stands "LN" on the grids, over the channels of each
            cell: a grid of one cell leaves GroupNorm too few values.
        bins: cells of each grid a side.
    """

    def __init__(self, channels: int, norm: str, bins: Sequence[int] = BINS):
        super().__init__()
        self.bins = tuple(bins)
        grid_norm = "LN" if norm == "GN" else norm
        self.grids = nn.ModuleList(normalised_conv(channels, channels, 1, grid_norm) for _ in bins)
        self.output = normalised_conv(channels * (1 + len(self.bins)), channels, 3, norm)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) of (N, C, h, w)."""
        parts = [features]
        for side, conv in zip(self.bins, self.grids, strict=True):
            grid = conv(F.adaptive_avg_pool2d(features, side))
            parts.append(
                F.interpolate(grid, features.shape[-2:], mode="bilinear", align_corners=False)
            )
        return self.output(torch.cat(parts, dim=1))


def normalised_conv(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    """A convolution that keeps the size, its norm in place of a bias, and a ReLU.

    Args:
        in_channels, out_channels, kernel_size: of the convolution.
        norm: name of a norm of Detectron2; "" leaves a bias.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    weight_init.c2_msra_fill(conv)
    return conv
