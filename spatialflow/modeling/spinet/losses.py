"""The losses of SPINet, eq. (1) to (6), as functions of tensors.

Legend: n masks, S stuff labels, t triplets, H x W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
"""Keeps a quotient, or a root, and their gradients finite."""
IGNORED_CLASS = -1
"""Value of pixels without a class in :func:`contour_target`."""


def dice_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """The dice loss of V-Net, with squares, of eq. (1) and (2).

    A mask whose target is empty has loss 1 and no gradient.

    Args:
        probabilities, targets: (n, H, W) in [0, 1].

    Returns:
        (n,).
    """
    p, y = probabilities.float().flatten(1), targets.float().flatten(1)
    return 1 - 2 * (p * y).sum(1) / (p.square().sum(1) + y.square().sum(1) + EPS)


def multi_class_dice_loss(scores: Tensor, labels: Tensor, ignore_value: int) -> Tensor:
    """Eq. (2) of an image: the mean over the stuff labels of the dice loss of the softmax.

    Args:
        scores: (S, H, W).
        labels: (H, W) int64.
        ignore_value: label of pixels that are left out.
    """
    counted = labels != ignore_value
    one_hot = F.one_hot(labels[counted], len(scores)).T
    return dice_loss(scores.float().softmax(0)[:, counted], one_hot).mean()


def hardest_cross_entropy(
    scores: Tensor, labels: Tensor, ignore_value: int, share: float
) -> tuple[Tensor, int]:
    """The bootstrapped cross-entropy of an image: the sum over its hardest pixels, and how many.

    Args:
        scores: (S, H, W).
        labels: (H, W) int64.
        ignore_value: label of pixels that are left out.
        share: the part of the labelled pixels that counts; 1 is plain cross-entropy.
    """
    loss = F.cross_entropy(
        scores.float().flatten(1).T, labels.flatten(), reduction="none", ignore_index=ignore_value
    )
    count = int((labels != ignore_value).sum())
    if share < 1:
        # Pixels that are left out have loss 0, the smallest there is.
        count = min(count, max(1, round(share * count)))
        loss = loss.topk(count).values
    return loss.sum(), count


def triplet_loss(anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Eq. (5): -log(e^dp / (e^dp + e^dn)) of negative distances is softplus(|a-p| - |a-n|).

    Args:
        anchors, positives, negatives: (t, D).

    Returns:
        (t,).
    """
    return F.softplus(_distance(anchors, positives) - _distance(anchors, negatives))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """The L2 distance of rows, whose gradient is finite where they are equal."""
    return ((a - b).float().square().sum(1) + EPS).sqrt()


def contour_target(classes: Tensor) -> Tensor:
    """The soft contours between classes of eq. (6).

    Reading: a pixel is on a contour when another class is among its 8 neighbours, and a mean over
    3x3 pixels makes it soft. Pixels without a class make no contour.

    Args:
        classes: (H, W) int64; :data:`IGNORED_CLASS` is none.

    Returns:
        (H, W) in [0, 1].
    """
    ignored = classes == IGNORED_CLASS
    values = classes.float()[None, None]
    none = values.max() + 1
    largest = F.max_pool2d(values, 3, 1, 1)
    smallest = -F.max_pool2d(-values.masked_fill(ignored, none), 3, 1, 1)
    contour = ((largest != smallest) & ~ignored).float()
    return F.avg_pool2d(contour, 3, 1, 1, count_include_pad=False)[0, 0]
