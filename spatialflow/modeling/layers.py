"""Convolutions of heads and pyramids, and how weights start."""

from __future__ import annotations

import math
from collections.abc import Callable

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from .norms import get_norm

COCO_THINGS, COCO_STUFF_LABELS = 80, 54
"""COCO's class counts, 'other' included: what the start of the class layers is meant for."""


def conv3x3(in_channels: int, out_channels: int, norm: str = "") -> nn.Conv2d:
    """A 3x3 convolution, padding 1, initialised as RetinaNet's head: N(0, 0.01), bias 0.

    Args:
        in_channels, out_channels: of the convolution.
        norm: name of a norm of Detectron2's ``get_norm`` that follows it, in Detectron2's
            ``Conv2d``; "": none, and PyTorch's ``Conv2d``, which takes less time a call.
    """
    if norm:
        conv = Conv2d(in_channels, out_channels, 3, padding=1, norm=get_norm(norm, out_channels))
    else:
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    initialize(conv, "normal")
    return conv


def normalised_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    norm: str,
    *,
    stride: int = 1,
    activation: Callable[[Tensor], Tensor] | None = None,
    fill: Callable[[nn.Module], None] = weight_init.c2_msra_fill,
) -> Conv2d:
    """Detectron2's convolution with its norm in place of a bias, padded by half a kernel.

    Args:
        in_channels, out_channels, kernel_size, stride: of the convolution.
        norm: name of a norm of Detectron2's ``get_norm``; "" leaves a bias.
        activation: behind the norm.
        fill: gives the weights their initial values.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
    fill(conv)
    return conv


def initialize(conv: nn.Conv2d, init: str) -> None:
    """Set the weights of a convolution to initial values, and its bias to 0.

    Args:
        conv: changed in place.
        init: "normal", N(0, 0.01); "msra", which keeps the scale of the features; or "zero".
    """
    if init == "msra":
        weight_init.c2_msra_fill(conv)
        return
    nn.init.normal_(conv.weight, std=0.01) if init == "normal" else nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


@torch.no_grad()
def scale_msra_fill(predictor: nn.Conv2d, num_classes: int) -> None:
    """Give a 1x1 convolution that starts as "msra" the start it has for another class count.

    MSRA's standard deviation is sqrt(2 / channels out). Of a layer with a channel for each class
    it is meant for COCO's counts; with few classes the first logits would be large and their loss
    far above that of chance.

    Args:
        predictor: filled by ``c2_msra_fill``; a channel for each class.
        num_classes: the count whose standard deviation the weights get.
    """
    predictor.weight.mul_(math.sqrt(predictor.out_channels / num_classes))
