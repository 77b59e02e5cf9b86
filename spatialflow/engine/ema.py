"""The exponential moving average of the weights, which evaluation and checkpoints take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

WARM_UP = 10
"""After n steps the average has at most the decay (1 + n) / (WARM_UP + n), so that it soon forgets
the weights that training started with."""


class WeightAverage(HookBase):
    """After each step the average moves towards the weights (Polyak and Juditsky, 1992).

        average = d * average + (1 - d) * weights,    d = min(decay, (1 + n) / (10 + n))

    Buffers, such as the statistics of batch norms, are averaged as parameters are.

    Args:
        model: the model that is trained, without DistributedDataParallel.
        decay: above 0 and below 1.

    Raises:
        ValueError: another decay.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"SOLVER.EMA_DECAY is {decay}; give 0 (none) or a number below 1.")
        self._trained = model
        self._decay = decay
        self._average = AveragedModel(model, multi_avg_fn=self._move, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights."""
        return self._average.module

    def after_step(self) -> None:
        """Move the average."""
        self._average.update_parameters(self._trained)

    @property
    def resumed(self) -> bool:
        """Whether there is an average of earlier steps."""
        return bool(self._average.n_averaged)

    def start_from_average(self) -> None:
        """Give the trained model the weights that were loaded into the averaged one."""
        self._trained.load_state_dict(self.model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the averaged model lacks to go on: the weights, the step number."""
        return {
            "weights": self._trained.state_dict(),
            "num_averaged": int(self._average.n_averaged),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self._trained.load_state_dict(state["weights"])
        self._average.n_averaged.fill_(state["num_averaged"])

    @torch.no_grad()
    def _move(self, average: Sequence[Tensor], weights: Sequence[Tensor], n: Tensor | int) -> None:
        steps = int(self._average.n_averaged)  # the same as n, which is on the device
        decay = min(self._decay, (1 + steps) / (WARM_UP + steps))
        for mean, value in zip(average, weights, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
