"""The focal loss of all anchors, a part of them at a time.

Legend: R anchors of all images, K thing classes.
"""

from __future__ import annotations

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
    parts = zip(logits.split(ANCHORS_AT_A_TIME), labels.split(ANCHORS_AT_A_TIME), strict=True)
    loss = partial(_focal_loss, alpha=alpha, gamma=gamma)
    # Nothing but the logits is kept for the gradients.
    run = partial(checkpoint, loss, use_reentrant=False, preserve_rng_state=False)
    return torch.stack([run(*part) for part in parts]).sum()


def _focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    counted = labels != IGNORED
    # The last column, background, has no logit.
    one_hot = nn.functional.one_hot(labels[counted], logits.shape[1] + 1)[:, :-1]
    return sigmoid_focal_loss(
        logits[counted], one_hot.to(logits.dtype), alpha=alpha, gamma=gamma, reduction="sum"
    )
