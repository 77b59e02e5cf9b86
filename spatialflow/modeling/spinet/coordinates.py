"""Absolute positions as two more channels, as in CoordConv (Sec. 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def with_coordinates(feature: Tensor, stride: int, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """A feature with the x and y of each cell behind its channels.

    Positions are relative to each image's own size, so that they do not depend on the batch that
    it was padded in: -1 is its left or upper border, 1 its right or lower one.

    Args:
        feature: (N, C, H, W).
        stride: pixels a cell.
        sizes: (height, width) in pixels of each of the N images.

    Returns:
        (N, C + 2, H, W).
    """
    height, width = feature.shape[-2:]
    y, x = (
        2 * stride * (torch.arange(n, device=feature.device, dtype=torch.float32) + 0.5)
        for n in (height, width)
    )
    grids = [
        torch.stack([(x / w - 1).expand(height, width), (y / h - 1)[:, None].expand(height, width)])
        for h, w in sizes
    ]
    return torch.cat([feature, torch.stack(grids).to(feature.dtype)], dim=1)
