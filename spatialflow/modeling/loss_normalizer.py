"""One normaliser for all processes, so that the losses do not depend on how a batch is split."""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def mean_over_processes(count: int | Tensor, like: Tensor) -> Tensor:
    """The mean of a count over all processes, at least one in all.

    Distributed training averages the gradients of the processes. A loss that each process computes
    as ``sum / mean_over_processes(count)`` therefore has the gradient of ``sum / count`` over the
    whole batch.

    Args:
        count: count of this process.
        like: a tensor whose device the result has.

    Returns:
        A float32 scalar.
    """
    world = comm.get_world_size()
    total = torch.as_tensor(count, dtype=torch.float32, device=like.device).clone()
    if world > 1:
        dist.all_reduce(total)
    return total.clamp(min=1) / world
