"""Class activation maps: what the last convolution of a head answers to (Fig. 5).

Legend: K thing classes, S stuff labels, H x W the size of the result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spatialflow import SpatialFlow


class ClassActivations(NamedTuple):
    """Activations of every class at the size of the image, 0 or more.

    ``cls``: (K, H, W), the greatest over anchors and levels. ``stuff``: (S, H, W), or None without
    a stuff branch.
    """

    cls: Tensor
    stuff: Tensor | None


@torch.no_grad()
def class_activations(model: nn.Module, inputs: dict, size: tuple[int, int]) -> ClassActivations:
    """Class activation maps of one image.

    Args:
        model: a model in evaluation mode.
        inputs: the model's input of the image.
        size: (height, width) of the result.

    Raises:
        ValueError: the model is no SpatialFlow.
    """
    if not isinstance(model, SpatialFlow):
        raise ValueError(
            f"Class activation maps are made of a SpatialFlow alone, not of {type(model).__name__}."
        )
    images = model.preprocess_image([inputs])
    (image_size,) = images.image_sizes
    padded = list(images.tensor.shape[-2:])
    features = model.extract_features(images.tensor)

    def resize(maps: Tensor) -> Tensor:
        maps = F.interpolate(maps, padded, mode="bilinear", align_corners=False)
        maps = maps[:, :, : image_size[0], : image_size[1]]
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)[0].relu()

    num_classes = model.detector.num_classes
    levels = [
        _without_bias(model.detector.cls_score, x).unflatten(1, (-1, num_classes)).amax(dim=1)
        for x in features.cls
    ]
    cls = torch.stack([resize(level) for level in levels]).amax(dim=0)
    if model.stuff_head is None:
        return ClassActivations(cls, None)
    head = model.stuff_head
    answers = head.layers(dict(zip(head.in_features, features.stuff, strict=True)))
    return ClassActivations(cls, resize(answers - head.predictor.bias.view(1, -1, 1, 1)))


def _without_bias(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, padding=conv.padding)
