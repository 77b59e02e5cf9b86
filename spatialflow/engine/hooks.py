"""Hooks of the trainer beside Detectron2's own."""

from __future__ import annotations

import math
from typing import Any

import detectron2.engine.hooks
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn


class FiniteLossGuard(HookBase):
    """Stops training before the optimizer steps on a loss that is not finite.

    To be registered with the inner trainer (``SimpleTrainer``), whose ``after_backward`` comes
    before the step. All processes stop together, whichever of them had the bad loss.

    Args:
        model: gets lists of dataset dicts and, in training, returns dicts of scalar losses.
    """

    def __init__(self, model: nn.Module) -> None:
        self._batch: list[dict] = []
        self._losses: dict[str, Tensor] = {}
        model.register_forward_hook(self._remember)

    def _remember(self, model: nn.Module, inputs: tuple, outputs: Any) -> None:
        if model.training:
            self._batch = inputs[0]
            self._losses = {name: loss.detach() for name, loss in outputs.items()}

    def after_backward(self) -> None:
        """Raise a FloatingPointError that names the iteration, the losses and the images."""
        losses = {name: loss.item() for name, loss in self._losses.items()}
        images = [image["file_name"] for image in self._batch]
        self._batch = []
        finite = all(map(math.isfinite, losses.values()))
        found = comm.all_gather(None if finite else (losses, images))
        bad = {rank: report for rank, report in enumerate(found) if report}
        if bad:
            raise FloatingPointError(_describe(self.trainer.iter, bad))


def _describe(iteration: int, bad: dict[int, tuple[dict[str, float], list[str]]]) -> str:
    lines = [
        f"The loss is not finite at iteration {iteration}; the weights were not changed by it."
    ]
    for rank, (losses, images) in bad.items():
        lines.append(f"process {rank}: " + ", ".join(f"{k} {v:.4g}" for k, v in losses.items()))
        lines.extend(f"  image {image}" for image in images)
    lines.append(
        "Look at these images and their ground truth, or resume from the last checkpoint with a "
        "lower SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or SOLVER.CLIP_GRADIENTS."
    )
    return "\n".join(lines)


class BestCheckpointer(detectron2.engine.hooks.BestCheckpointer):
    """Detectron2's hook, which forgets the best value when training resumes."""

    def _best_checking(self) -> None:
        if self._val_metric in self.trainer.storage.latest():  # not every model has it
            super()._best_checking()

    def state_dict(self) -> dict[str, Any]:
        """The best value so far and its iteration."""
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up ``state_dict``."""
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]
