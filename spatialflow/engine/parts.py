"""Batches that go through the model in parts: gradients add up, memory is that of a part."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class InParts(nn.Module):
    """A model in training that takes a batch apart and has the gradients of all parts but the last.

    The losses are the means over the parts, by their numbers of images. Where a model divides a
    loss by what a batch holds, as by the number of its positive anchors, the parts are batches of
    their own. The gradients have to be zeroed before the forward and not behind it.

    Args:
        model: takes a list of dataset dicts and returns scalar losses by name.
        num_parts: how many parts a batch has; a batch of fewer images has as many as those.
        scale: of a loss, such as that of a ``GradScaler``.

    Raises:
        ValueError: less than one part.
    """

    def __init__(
        self,
        model: nn.Module,
        num_parts: int,
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> None:
        super().__init__()
        if num_parts < 1:
            raise ValueError(f"SOLVER.BATCH_PARTS is {num_parts}; give 1 or more.")
        self.model = model
        self.num_parts = num_parts
        self.scale = scale

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Losses of the batch, whose ``backward`` adds the gradients of the last part."""
        num_parts = min(self.num_parts, len(batch))
        bounds = [len(batch) * i // num_parts for i in range(num_parts + 1)]
        parts = [batch[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        share = [len(part) / len(batch) for part in parts]
        done: dict[str, Tensor] = {}
        for part, weight in zip(parts[:-1], share[:-1], strict=True):
            with self._without_exchange():
                losses = {k: v * weight for k, v in self.model(part).items()}
                with torch.autocast(next(iter(losses.values())).device.type, enabled=False):
                    self.scale(torch.stack(list(losses.values())).sum()).backward()
            done = {k: v.detach() + done.get(k, 0) for k, v in losses.items()}
        last = self.model(parts[-1])
        return {k: v * share[-1] + done.get(k, 0) for k, v in last.items()}

    def _without_exchange(self) -> Any:
        """Processes exchange the gradients of the last part only, which hold those of all."""
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()
