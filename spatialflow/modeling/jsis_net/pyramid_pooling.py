"""The Pyramid Pooling Module of the semantic branch (Sec. 2.1; Zhao et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import normalised_conv
from ..norms import norm_of_few_cells

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
        conv = partial(normalised_conv, activation=F.relu)
        grid_norm = norm_of_few_cells(norm)
        self.grids = nn.ModuleList(conv(channels, channels, 1, grid_norm) for _ in bins)
        self.output = conv(channels * (1 + len(self.bins)), channels, 3, norm)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) of (N, C, h, w)."""
        parts = [features]
        for side, conv in zip(self.bins, self.grids, strict=True):
            grid = conv(F.adaptive_avg_pool2d(features, side))
            parts.append(
                F.interpolate(grid, features.shape[-2:], mode="bilinear", align_corners=False)
            )
        return self.output(torch.cat(parts, dim=1))
