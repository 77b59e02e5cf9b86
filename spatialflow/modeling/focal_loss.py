"""The focal loss of all anchors, a part of them at a time.

Legend: R anchors of all images, K thing classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORED = -1
"""Label of an anchor that takes no part in the loss."""
ANCHORS_AT_A_TIME = 2**16
"""The tensors of all anchors and classes together would be the peak of training."""


def focal_loss_in_parts(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """The sum of the focal loss over the anchors that are not ignored.

    Args:
        logits: (R, K).
        labels: (R,): class, K for background, -1 for ignored.
        alpha, gamma: parameters of the focal loss.
    """
    return _in_parts(partial(_focal_loss, alpha=alpha, gamma=gamma), logits, labels)


def quality_focal_loss_in_parts(
    logits: Tensor, labels: Tensor, quality: Tensor, beta: float
) -> Tensor:
    """The sum of the quality focal loss (Li et al., "Generalized Focal Loss", eq. 2).

    Args:
        logits: (R, K).
        labels: (R,): class, K for background, -1 for ignored.
        quality: (R,), 0 to 1: what the score of the class should be.
        beta: exponent of the distance from it.
    """
    return _in_parts(partial(_quality_focal_loss, beta=beta), logits, labels, quality)


def _in_parts(loss: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    parts = zip(*(x.split(ANCHORS_AT_A_TIME) for x in tensors), strict=True)
    # Nothing but the arguments is kept for the gradients.
    run = partial(checkpoint, loss, use_reentrant=False, preserve_rng_state=False)
    return torch.stack([run(*part) for part in parts]).sum()


def _focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    counted = labels != IGNORED
    # The last column, background, has no logit.
    one_hot = nn.functional.one_hot(labels[counted], logits.shape[1] + 1)[:, :-1]
    return sigmoid_focal_loss(
        logits[counted], one_hot.to(logits.dtype), alpha=alpha, gamma=gamma, reduction="sum"
    )


def _quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor, beta: float) -> Tensor:
    counted = labels != IGNORED
    logits, one_hot = logits[counted], nn.functional.one_hot(labels[counted], logits.shape[1] + 1)
    target = one_hot[:, :-1] * quality[counted, None]
    loss = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * (target - logits.sigmoid()).abs() ** beta).sum()
