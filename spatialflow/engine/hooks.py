"""Hooks of the trainer beside Detectron2's own."""

from __future__ import annotations

import logging
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import detectron2.engine.hooks
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from spatialflow.checkpoint import SafeCheckpointer
from spatialflow.checkpoint.safe import load_tensors
from spatialflow.utils.text import name_some

MAX_SKIPPED_STEPS = 50
"""Steps in a row that torch's GradScaler may skip. Each one halves the scale, which starts at 2^16:
after so many of them the gradient itself is not finite, whatever the scale."""


class FiniteGuard(HookBase):
    """Stops training before the optimizer steps on a loss or a gradient that is not finite.

    To be registered with the inner trainer (``SimpleTrainer``), whose ``after_backward`` comes
    before the step. All processes stop together, whichever of them had the bad loss.

    With AMP in float16 a scaled gradient that overflows is nothing unusual: torch's ``GradScaler``
    skips the step and lowers the scale. There the losses are looked at, and training stops once
    ``MAX_SKIPPED_STEPS`` steps in a row were skipped.

    Args:
        model: gets lists of dataset dicts and, in training, returns dicts of scalar losses.
        optimizer: that steps on the gradients of the model.
        amp: whether a ``GradScaler`` decides about the step, as in half precision.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, amp: bool) -> None:
        self._model = model
        self._amp = amp
        self._batch: list[dict] = []
        self._losses: dict[str, Tensor] = {}
        self._skipped_steps = 0
        model.register_forward_hook(self._remember)
        optimizer.register_step_post_hook(self._count_step)

    def _remember(self, model: nn.Module, inputs: tuple, outputs: Any) -> None:
        if model.training:  # once for each part of a batch
            self._batch = [*self._batch, *inputs[0]]
            self._losses = {k: v.detach() + self._losses.get(k, 0) for k, v in outputs.items()}

    def _count_step(self, *_: Any) -> None:
        self._skipped_steps = 0

    def after_backward(self) -> None:
        """Raise a FloatingPointError that names the iteration, what is not finite, and the images.

        Losses and the largest gradient come to the host in one transfer.
        """
        norms = [] if self._amp else [norm for _, norm in self._gradient_norms()]
        largest = [torch.stack(norms).max()] if norms else []
        values = torch.stack([v.float() for v in (*self._losses.values(), *largest)]).tolist()
        losses = dict(zip(self._losses, values, strict=False))
        images = [image["file_name"] for image in self._batch]
        self._batch, self._losses = [], {}
        report = None
        if not all(map(math.isfinite, values)):
            report = _Report(losses, self._non_finite_gradients(), images)
        found = comm.all_gather(report)
        bad = {rank: report for rank, report in enumerate(found) if report}
        if bad:
            raise FloatingPointError(_describe(self.trainer.iter, bad))
        self._check_skipped_steps()

    def _gradient_norms(self) -> list[tuple[str, Tensor]]:
        """The largest absolute value in the gradient of each parameter."""
        return [
            (name, torch.linalg.vector_norm(parameter.grad, math.inf).float())
            for name, parameter in self._model.named_parameters()
            if parameter.grad is not None
        ]

    def _non_finite_gradients(self) -> list[str]:
        if self._amp:
            return []
        return [name for name, norm in self._gradient_norms() if not norm.isfinite()]

    def _check_skipped_steps(self) -> None:
        if self._amp and self._skipped_steps >= MAX_SKIPPED_STEPS:
            raise FloatingPointError(
                f"The gradient was not finite in the {MAX_SKIPPED_STEPS} iterations before "
                f"{self.trainer.iter}, at every scale of SOLVER.AMP, though the losses were; the "
                f"weights were not changed by them. {ADVICE} Or set SOLVER.AMP.ENABLED to False."
            )
        self._skipped_steps += 1  # until the optimizer steps


class _Report(NamedTuple):
    """What was not finite in one process."""

    losses: dict[str, float]
    gradients: list[str]
    images: list[str]

    @property
    def has_bad_loss(self) -> bool:
        return not all(map(math.isfinite, self.losses.values()))


ADVICE = (
    "Look at the images and their ground truth, or resume from the last checkpoint with a lower "
    "SOLVER.BASE_LR, a longer SOLVER.WARMUP_ITERS or SOLVER.CLIP_GRADIENTS."
)


def _describe(iteration: int, bad: dict[int, _Report]) -> str:
    of_loss = {rank: report for rank, report in bad.items() if report.has_bad_loss}
    what = "loss" if of_loss else "gradient (of finite losses)"
    lines = [
        f"The {what} is not finite at iteration {iteration}; the weights were not changed by it."
    ]
    # A bad loss in one process makes the gradient that all of them share bad.
    for rank, report in (of_loss or bad).items():
        losses = ", ".join(f"{k} {v:.4g}" for k, v in report.losses.items())
        lines.append(f"process {rank}: {losses}")
        if not of_loss:
            lines.append(f"  gradient of {name_some(report.gradients)}")
        lines.extend(f"  image {image}" for image in report.images)
    return "\n".join([*lines, ADVICE])


class PeriodicCheckpointer(detectron2.engine.hooks.PeriodicCheckpointer):
    """Detectron2's hook, whose ``max_to_keep`` counts the checkpoints from before a resume too."""

    def before_train(self) -> None:
        """Find the checkpoints that the resumed run had written, and keep the last ones."""
        super().before_train()
        if self.max_to_keep is None or self.trainer.start_iter == 0:
            return
        earlier = {}
        for file in Path(self.checkpointer.save_dir).glob(f"{self.file_prefix}_*.pth"):
            number = re.fullmatch(rf"{self.file_prefix}_(\d{{7,}})", file.stem)
            if number and int(number[1]) < self.trainer.start_iter:
                earlier[int(number[1])] = str(file)
        paths = [earlier[i] for i in sorted(earlier)]
        for path in paths[: -self.max_to_keep]:
            os.remove(path)
        self.recent_checkpoints = paths[-self.max_to_keep :]


class BestModelCheckpointer(detectron2.engine.hooks.BestCheckpointer):
    """Detectron2's ``BestCheckpointer``, which does not forget the best value on resuming.

    The value stands in ``model_best.pth`` itself and is read from there: a checkpoint of the
    trainer is written before the evaluation of its iteration and cannot know it.

    Args:
        eval_period: the period of ``EvalHook``, in iterations.
        model: the model to save.
        save_dir: folder of ``model_best.pth``.
        val_metric: name of the metric in the event storage, the higher the better.
    """

    def __init__(self, eval_period: int, model: nn.Module, save_dir: str, val_metric: str) -> None:
        super().__init__(eval_period, _BestCheckpoint(model, save_dir, val_metric), val_metric)

    def before_train(self) -> None:
        """Restore the best value of a resumed run."""
        path = Path(self._checkpointer.save_dir, f"{self._file_prefix}.pth")
        if self.trainer.start_iter == 0 or not path.exists():
            return
        best = load_tensors(str(path))
        self.best_metric = best.get("metrics", {}).get(self._val_metric)
        self.best_iter = best.get("iteration")
        if self.best_metric is None:
            logging.getLogger(__name__).warning(
                f"{path} has no {self._val_metric}: the next evaluation replaces it."
            )

    def _best_checking(self) -> None:
        if self._val_metric in self.trainer.storage.latest():  # not every model has it
            super()._best_checking()


class _BestCheckpoint(SafeCheckpointer):
    """Writes checkpoints with a metric, which training does not resume from."""

    def __init__(self, model: nn.Module, save_dir: str, metric: str) -> None:
        super().__init__(model, save_dir)
        self._metric = metric

    def save(self, name: str, **kwargs: Any) -> None:
        value, _ = get_event_storage().latest()[self._metric]
        super().save(name, metrics={self._metric: value}, **kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass
