"""The panoptic feature generator (Sec. 3.3, Fig. 3): one feature for things and stuff.

Legend: N images, C channels of a level, D channels of the panoptic feature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn

from ..deform_conv import DeformConv
from .coordinates import with_coordinates

STRIDE = 8
"""Where the levels are summed; the panoptic feature has half of it."""


class PanopticFeature(nn.Module):
    """Semantic FPN's branch at stride 8, coordinates, two convolutions and a deconvolution.

    Readings: convolutions have ``norm`` and ReLU as in Semantic FPN; the deconvolution is 2x2 with
    stride 2 and nothing behind it (4.40 M parameters on Cityscapes, what Table 5's second generator
    adds).

    Args:
        shapes: of the levels.
        channels: D, also inside.
        norm: norm behind the convolutions.
        upsample_first: a level is upsampled before a convolution and not behind it.
        deformable: the convolutions are deformable, Table 1 (DCN, which the paper cites).
    """

    def __init__(
        self,
        shapes: Sequence[ShapeSpec],
        channels: int,
        *,
        norm: str = "GN",
        upsample_first: bool = False,
        deformable: bool = False,
    ):
        super().__init__()
        self.branches = nn.ModuleList()
        for shape in shapes:
            doublings = int(math.log2(shape.stride / STRIDE))
            layers: list[nn.Module] = []
            for i in range(max(doublings, 1)):
                conv = ConvBlock(channels if i else shape.channels, channels, norm, deformable)
                up = [nn.Upsample(scale_factor=2, mode="bilinear")] if doublings else []
                layers += [*up, conv] if upsample_first else [conv, *up]
            self.branches.append(nn.Sequential(*layers))
        self.conv1 = ConvBlock(channels + 2, channels, norm, deformable)
        self.conv2 = ConvBlock(channels, channels, norm, deformable)
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        weight_init.c2_msra_fill(self.deconv)

    def forward(self, levels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """The panoptic feature (N, D, h, w) at stride 4.

        Args:
            levels: (N, C, H_l, W_l) each, the first at stride 8.
            sizes: see :func:`with_coordinates`.
        """
        height, width = levels[0].shape[-2:]
        merged = None
        for branch, level in zip(self.branches, levels, strict=True):
            # A level of stride 64 or more may reach beyond the image.
            x = branch(level)[..., :height, :width]
            merged = x if merged is None else merged + x
        assert merged is not None
        return self.deconv(self.conv2(self.conv1(with_coordinates(merged, STRIDE, sizes))))


class ConvBlock(nn.Module):
    """A 3x3 convolution, its norm and ReLU; if deformable, with offsets from a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, norm: str, deformable: bool):
        super().__init__()
        kind = DeformConv if deformable else Conv2d
        self.conv = kind(
            in_channels,
            out_channels,
            3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, out_channels),
        )
        weight_init.c2_msra_fill(self.conv)
        self.conv_offset = None
        if isinstance(self.conv, DeformConv):
            self.conv_offset = Conv2d(in_channels, self.conv.num_offset_channels, 3, padding=1)
            nn.init.zeros_(self.conv_offset.weight)
            nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        return F.relu(
            self.conv(x) if self.conv_offset is None else self.conv(x, self.conv_offset(x))
        )
