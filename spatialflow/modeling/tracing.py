"""What ``torch.jit.trace`` and fvcore's counters, which use it, see of a model."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

NOT_TRACED = (
    "panoptic_seg is left out of the trace: how a merge runs depends on what is in the image, and "
    "its segments are no tensors. Trace with MODEL.PANOPTIC_FPN.COMBINE.ENABLED False (or "
    "model.merge = None), and call the merge (spatialflow.modeling.panoptic.HeuristicMerge) on the "
    "instances and sem_seg of the trace."
)


def is_traced_without_map() -> bool:
    """Whether torch is tracing, which cannot follow a merge; then a TracerWarning says so."""
    if torch.jit.is_tracing():
        warnings.warn(NOT_TRACED, torch.jit.TracerWarning, stacklevel=3)
        return True
    return False


def indices_of_largest(values: Tensor, count: int) -> Tensor:
    """The indices of the largest values (n,), largest first.

    Args:
        values: (n,); a trace takes any n, otherwise n is ``count`` at least.
        count: how many.
    """
    if torch.jit.is_tracing():
        return values.argsort(descending=True)[:count]
    return values.topk(count).indices
