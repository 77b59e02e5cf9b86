"""The layers that depend on the classes, for training on other classes than the weights have.

The papers take a COCO model to Cityscapes by training these layers alone at first (Sec. IV-C2).
"""

from __future__ import annotations

import math

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

CLASS_LAYERS = ("detector.cls_score.", "thing_head.mask_head.predictor.", "stuff_head.predictor.")
"""What the names of their weights begin with."""
COCO_THINGS, COCO_STUFF_LABELS = 80, 54
"""COCO's class counts, 'other' included: what the start of the class layers is meant for."""


def is_class_layer(name: str) -> bool:
    """Whether the weight of this name, in a SpatialFlow, depends on the classes."""
    return name.startswith(CLASS_LAYERS)


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


def train_only_class_layers(model: nn.Module) -> None:
    """Freeze all of a SpatialFlow but its class layers, statistics of batch norms included."""
    FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_class_layer(name))
