"""Filters of things, sampled from the pyramid (Sec. 3.2), and the single-shot convolution (3.4).

Legend: N images, K thing classes, D_f channels of the filter head, D channels of the panoptic
feature, k side of a filter, n sampled locations. A location is an index into the cells of all
levels, level by level and row by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import conv3x3, initialize
from .coordinates import with_coordinates


class FilterMaps(NamedTuple):
    """What the heads predict on each level: (N, K, H_l, W_l) logits, (N, D_f, H_l, W_l) filters."""

    logits: list[Tensor]
    filters: list[Tensor]


class FilterSampling(nn.Module):
    """Class head and filter head, whose weights all levels share, and the filter generator.

    "The class head consists of four sequential convolutions"; the filter head is the same, with
    coordinates as additional input. Reading: both are convolutions with group norm and ReLU, and a
    3x3 predictor behind them. With D_f = 256 and k = 3 the parameters are Table 2's.

    Args:
        in_channels: channels of a level, and of the heads.
        num_classes: K.
        strides: pixels a cell of each level.
        filter_channels: D_f.
        feature_channels: D.
        kernel_size: k.
        num_convs: convolutions of a head before the predictor.
        norm: norm behind them.
        prior_prob: score of every class at the start, as in RetinaNet.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        strides: Sequence[int],
        filter_channels: int = 256,
        feature_channels: int = 256,
        kernel_size: int = 3,
        num_convs: int = 4,
        norm: str = "GN",
        prior_prob: float = 0.01,
    ):
        super().__init__()
        self.strides = list(strides)
        self.kernel_size = kernel_size
        self.class_tower = _tower(in_channels, in_channels, num_convs, norm)
        self.class_score = conv3x3(in_channels, num_classes)
        assert self.class_score.bias is not None
        nn.init.constant_(self.class_score.bias, -math.log((1 - prior_prob) / prior_prob))
        self.filter_tower = _tower(in_channels + 2, in_channels, num_convs, norm)
        self.filter_map = conv3x3(in_channels, filter_channels)
        initialize(self.filter_map, "msra")
        weights = kernel_size**2
        self.generator = nn.Linear(weights * filter_channels, weights * feature_channels)
        # So that logits of the filters are about N(0, 1) at the start: sigmoid is not saturated.
        std = 1 / math.sqrt(self.generator.in_features * self.generator.out_features)
        nn.init.normal_(self.generator.weight, std=std)
        nn.init.zeros_(self.generator.bias)

    def forward(self, levels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> FilterMaps:
        """What the heads predict.

        Args:
            levels: (N, C, H_l, W_l) each.
            sizes: see :func:`with_coordinates`.
        """
        located = [
            with_coordinates(x, stride, sizes)
            for x, stride in zip(levels, self.strides, strict=True)
        ]
        return FilterMaps(
            [self.class_score(self.class_tower(x)) for x in levels],
            [self.filter_map(self.filter_tower(x)) for x in located],
        )

    def sample(self, filters: Sequence[Tensor], locations: Tensor) -> Tensor:
        """The filters of things at locations of one image.

        Args:
            filters: (D_f, H_l, W_l) of each level.
            locations: (n,) int64.

        Returns:
            (n, D, k, k).
        """
        windows = windows_at(filters, locations, self.kernel_size)
        # Not the module's call: the benchmark's calibration changes the scores, on which the
        # locations depend, and repeats what modules without a class layer returned before.
        generated = F.linear(windows, self.generator.weight, self.generator.bias)
        return generated.unflatten(1, (-1, self.kernel_size, self.kernel_size))


def windows_at(filters: Sequence[Tensor], locations: Tensor, side: int) -> Tensor:
    """The window of each location, zero beyond the border of its level.

    Args:
        filters: (D_f, H_l, W_l) of each level.
        locations: (n,) int64.
        side: side of a window.

    Returns:
        (n, D_f * side * side), in the order of ``F.unfold``.
    """
    steps = torch.arange(side, device=locations.device)
    windows = filters[0].new_zeros(len(locations), len(filters[0]), side, side)
    start = 0
    for feature in filters:
        height, width = feature.shape[-2:]
        here = ((locations >= start) & (locations < start + height * width)).nonzero()[:, 0]
        cells = locations[here] - start
        rows = (cells // width)[:, None, None] + steps[:, None]
        columns = (cells % width)[:, None, None] + steps
        padded = F.pad(feature, [side // 2] * 4)
        windows = windows.index_put((here,), padded[:, rows, columns].transpose(0, 1))
        start += height * width
    return windows.flatten(1)


def single_shot_convolution(feature: Tensor, filters: Tensor) -> Tensor:
    """All filters of an image, of things and of stuff, applied to its panoptic feature at once.

    Args:
        feature: (D, h, w), or (N, D, h, w) where the filters are those of all N images.
        filters: (n, D, k, k), k odd.

    Returns:
        (n, h, w) or (N, n, h, w) logits.
    """
    if not len(filters):
        return feature.new_zeros((*feature.shape[:-3], 0, *feature.shape[-2:]))
    return F.conv2d(feature, filters.to(feature.dtype), padding=filters.shape[-1] // 2)


def _tower(in_channels: int, channels: int, num_convs: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(num_convs):
        conv = conv3x3(channels if i else in_channels, channels, norm)
        initialize(conv, "msra")
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers)
