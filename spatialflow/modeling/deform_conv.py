"""Deformable convolution (DCN and DCNv2) on torchvision's operator, and the ResNet block with it.

torchvision's operator runs on CPU and CUDA with gradients and comes with every installation, which
Detectron2's own compiled one does not.
"""

from __future__ import annotations

import math
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformConv(Conv2d):
    """A convolution that samples at offsets (DCN).

    Args:
        args, kwargs: of Detectron2's ``Conv2d``, ``norm`` and ``activation`` among them.
        deformable_groups: channel groups with offsets of their own.
    """

    values_per_point = 2

    def __init__(self, *args: Any, deformable_groups: int = 1, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.num_points = deformable_groups * self.kernel_size[0] * self.kernel_size[1]
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def num_offset_channels(self) -> int:
        """Channels of ``offsets``: what each sampling point is given."""
        return self.values_per_point * self.num_points

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (N, in_channels, H, W).
            offsets: (N, 2 * points, H', W'), the (dy, dx) of the kernel's points, row by row, in
                pixels of ``x``.

        Returns:
            (N, out_channels, H', W').
        """
        return self._convolve(x, offsets, None)

    def _convolve(self, x: Tensor, shifts: Tensor, modulation: Tensor | None) -> Tensor:
        # In single precision, as torchvision's autocast rule for CUDA has it: on a CPU the operator
        # has no rule and no kernel for half precision.
        wide = torch.promote_types(x.dtype, torch.float32)
        sides = (self.stride, self.padding, self.dilation)
        with torch.autocast(x.device.type, enabled=False):
            image, shifts, weight = (t.to(wide) for t in (x, shifts, self.weight))
            bias, modulation = (None if t is None else t.to(wide) for t in (self.bias, modulation))
            # torchvision reads memory that is not its own at an offset that is not a number. What
            # made such an offset shows in the loss; the point itself goes outside the image.
            shifts = shifts.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
            x = deform_conv2d(image, shifts, weight, bias, *sides, modulation).to(x.dtype)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class ModulatedDeformConv(DeformConv):
    """A convolution that samples at offsets and weighs each sample (DCNv2)."""

    values_per_point = 3

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """As :meth:`DeformConv.forward`.

        Args:
            x: (N, in_channels, H, W).
            offsets: (N, 3 * points, H', W'): first all (dy, dx), then all modulation logits
                (sigmoid is taken here).
        """
        shifts, modulation = offsets.split([2 * self.num_points, self.num_points], dim=1)
        return self._convolve(x, shifts, modulation.sigmoid())


class DeformBottleneckBlock(CNNBlockBase):
    """A bottleneck block whose 3x3 convolution is deformable.

    Its weights have the names of Detectron2's block of that name, which needs Detectron2's
    compiled operators.

    Args:
        block: the plain block; all of it is taken over but the weights of its 3x3 convolution.
        modulated: DCNv2 instead of DCN.
        deformable_groups: channel groups with offsets of their own.
    """

    def __init__(self, block: BottleneckBlock, *, modulated: bool, deformable_groups: int = 1):
        super().__init__(block.in_channels, block.out_channels, block.stride)
        self.shortcut = block.shortcut
        self.conv1 = block.conv1
        plain = block.conv2
        sampling = {key: getattr(plain, key) for key in ("stride", "padding", "dilation")}
        deformable = ModulatedDeformConv if modulated else DeformConv
        self.conv2 = deformable(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,
            **sampling,
            groups=plain.groups,
            deformable_groups=deformable_groups,
            bias=False,
            norm=plain.norm,
        )
        weight_init.c2_msra_fill(self.conv2)
        self.conv2_offset = Conv2d(
            plain.in_channels, self.conv2.num_offset_channels, plain.kernel_size, **sampling
        )
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)
        self.conv3 = block.conv3
        if not block.conv1.weight.requires_grad:
            self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = F.relu_(self.conv1(x))
        out = F.relu_(self.conv2(out, self.conv2_offset(out)))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.conv3(out) + shortcut)
