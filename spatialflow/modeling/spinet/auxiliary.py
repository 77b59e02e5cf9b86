"""The auxiliary tasks, which are idle at inference (Sec. 4).

Legend: N images, D channels of the panoptic feature, h x w its size, H x W the padded input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn

from ..layers import initialize
from ..loss_normalizer import mean_over_processes
from .dense_masks import STRIDE
from .losses import IGNORED_CLASS, contour_target, triplet_loss
from .targets import ImageTargets


class IntraClassTriplets(nn.Module):
    """Eq. (3) to (5): halves of a thing are near each other, and those of other things far.

    Args:
        channels: D.
        same_class: negatives are things of the anchor's class, by the loss's name; otherwise, by
            the text ("another instance"), all other things of the image.
    """

    def __init__(self, channels: int, same_class: bool):
        super().__init__()
        self.same_class = same_class
        self.projection = nn.Linear(channels, channels)

    def forward(self, feature: Tensor, targets: Sequence[ImageTargets]) -> Tensor:
        """The mean over all triplets of the batch.

        Args:
            feature: (N, D, h, w).
            targets: of each image.
        """
        triplets = [self._triplets(x, t) for x, t in zip(feature, targets, strict=True)]
        losses = torch.cat([triplet_loss(*x) for x in triplets])
        return losses.sum() / mean_over_processes(len(losses), like=losses)

    def _triplets(self, feature: Tensor, image: ImageTargets) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors, positives and negatives, (t, D) each, of one image."""
        masks = at_feature_size(image.masks & ~image.ignored) >= 0.5
        half = torch.rand(feature.shape[-2:], device=feature.device) < 0.5
        parts = [masks & half, masks & ~half]
        # Things of a pixel make no pair.
        usable = torch.stack([part.flatten(1).any(1) for part in parts]).all(0)
        first, second = (self.projection(_means(feature, part[usable])) for part in parts)
        classes = image.classes[usable]
        others = ~torch.eye(len(classes), dtype=torch.bool, device=classes.device)
        if self.same_class:
            others &= classes[:, None] == classes
        anchors, negatives = others.nonzero(as_tuple=True)
        return first[anchors], second[anchors], first[negatives]


class InterClassContours(nn.Module):
    """Eq. (6): contours between classes, 16 values a cell for its 4x4 pixels.

    Args:
        channels: D.
        alpha, gamma: of the focal loss.
    """

    def __init__(self, channels: int, alpha: float, gamma: float):
        super().__init__()
        self.contour = nn.Conv2d(channels, STRIDE**2, 1)
        initialize(self.contour, "normal")
        self.alpha, self.gamma = alpha, gamma

    def forward(self, feature: Tensor, targets: Sequence[ImageTargets]) -> Tensor:
        """The mean over the pixels that are not ignored; arguments as above."""
        logits = F.pixel_shuffle(self.contour(feature), STRIDE)[:, 0].float()
        counted = torch.stack([~t.ignored for t in targets])
        wanted = torch.stack([contour_target(class_map(t)) for t in targets])
        loss = sigmoid_focal_loss(
            logits[counted], wanted[counted], self.alpha, self.gamma, reduction="sum"
        )
        return loss / mean_over_processes(counted.sum(), like=logits)


def class_map(image: ImageTargets) -> Tensor:
    """(H, W) int64: a number for each class, of things as of stuff, -1 where pixels are ignored."""
    classes = image.stuff.clone()
    first = 1 + int(classes.max())
    for mask, class_ in zip(image.masks, image.classes.tolist(), strict=True):
        classes[mask] = first + class_
    return classes.masked_fill(image.ignored, IGNORED_CLASS)


def at_feature_size(masks: Tensor) -> Tensor:
    """The share of each cell that masks (n, H, W) bool cover, (n, h, w) float."""
    if not len(masks):
        return masks.new_zeros(
            (0, *(side // STRIDE for side in masks.shape[1:])), dtype=torch.float
        )
    return F.avg_pool2d(masks[:, None].float(), STRIDE)[:, 0]


def _means(feature: Tensor, masks: Tensor) -> Tensor:
    """(n, D), eq. (4): the mean of a feature (D, h, w) under masks (n, h, w) bool."""
    weights = masks.flatten(1).to(feature.dtype)
    return weights @ feature.flatten(1).T / weights.sum(1, keepdim=True)
