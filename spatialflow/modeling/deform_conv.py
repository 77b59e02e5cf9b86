"""Modulated deformable convolution (DCNv2) on torchvision's operator.

torchvision's operator runs on CPU and CUDA with gradients and comes with every installation, which
Detectron2's own compiled one does not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class ModulatedDeformConv(nn.Module):
    """A convolution that samples at offsets and weighs each sample (DCNv2).

    Args:
        in_channels, out_channels: channels of input and result.
        kernel_size, stride, padding, dilation, groups, bias: as in ``torch.nn.Conv2d``, one number
            each.
        deformable_groups: channel groups with offsets of their own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.num_points = deformable_groups * kernel_size**2
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    @property
    def num_offset_channels(self) -> int:
        """Channels of ``offsets``: (dy, dx) and a modulation logit for each sampling point."""
        return 3 * self.num_points

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (N, in_channels, H, W).
            offsets: (N, 3 * points, H', W') for the points of the kernel, row by row: first all
                (dy, dx), in pixels of ``x``, then all modulation logits (sigmoid is taken here).

        Returns:
            (N, out_channels, H', W').
        """
        shift, modulation = offsets.split([2 * self.num_points, self.num_points], dim=1)
        return deform_conv2d(
            x,
            shift,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            modulation.sigmoid(),
        )
