"""The layers that depend on the classes, for training on other classes than the weights have.

The papers take a COCO model to Cityscapes by training these layers alone at first (Sec. IV-C2).
"""

from __future__ import annotations

from detectron2.layers import FrozenBatchNorm2d
from torch import nn

CLASS_LAYERS = ("detector.cls_score.", "thing_head.mask_head.predictor.", "stuff_head.predictor.")
"""What the names of their weights begin with."""


def is_class_layer(name: str) -> bool:
    """Whether the weight of this name, in a SpatialFlow, depends on the classes."""
    return name.startswith(CLASS_LAYERS)


def train_only_class_layers(model: nn.Module) -> None:
    """Freeze all of a SpatialFlow but its class layers, statistics of batch norms included."""
    FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_class_layer(name))
