"""Stopping so that a run can be resumed, and resuming so that it reads as one run.

A run is asked to stop by SIGTERM, or by SIGUSR1, which SLURM's ``--signal`` sends before a job's
time is over. It writes a checkpoint at the end of the iteration and ends with :data:`STOPPED`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from spatialflow.checkpoint import SafeCheckpointer
from spatialflow.utils.parallel import on_stop_signal

STOPPED = 75
"""Exit code of a run that was asked to stop and that ``--resume`` takes up: "temporary failure; the
user is invited to retry" (EX_TEMPFAIL of sysexits.h)."""

SMOOTHING_WINDOW = 20
"""Iterations whose median Detectron2's writers write."""

logger = logging.getLogger(__name__)


class TrainingStopped(SystemExit):
    """Training was asked to stop, and has written a checkpoint; raised in all processes alike."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class StopOnSignal(HookBase):
    """Ends training behind the iteration in which a process got a signal to stop.

    To be registered behind all other hooks, so that whatever belongs to the iteration is done.

    Args:
        checkpointer: of the trainer.
    """

    def __init__(self, checkpointer: SafeCheckpointer) -> None:
        self._checkpointer = checkpointer
        self._asked = False
        self._handling = ExitStack()

    def before_train(self) -> None:
        """Take the signals from here on."""
        self._handling.enter_context(on_stop_signal(self._remember))

    def after_train(self) -> None:
        """Give the signals back."""
        self._handling.close()

    def _remember(self, number: int, frame: Any) -> None:
        self._asked = True

    def after_step(self) -> None:
        """Write a checkpoint and raise TrainingStopped when any of the processes was asked to.

        The last iteration ends the run anyway, with its own checkpoint.
        """
        iteration = self.trainer.iter
        if iteration + 1 == self.trainer.max_iter:
            return
        if not self._any_asked():
            return
        self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        comm.synchronize()  # nobody ends a process group that still waits for the file
        logger.info(f"A signal asked to stop: done behind iteration {iteration}. --resume goes on.")
        raise TrainingStopped

    def _any_asked(self) -> bool:
        """Whether any of the processes was asked, the same in all of them."""
        if comm.get_world_size() == 1:
            return self._asked
        device = next(self._checkpointer.model.parameters()).device
        number = torch.tensor(float(self._asked), device=device)
        dist.all_reduce(number)
        return bool(number)


class OneRunOfMetrics(HookBase):
    """Lets ``metrics.json`` of a run that was stopped and resumed read as that of one run.

    What was written behind the checkpoint comes again, so it is cut off; and the values that the
    medians of the next lines are taken of are in the checkpoint.

    Args:
        path: the file that Detectron2's ``JSONWriter`` adds to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._recent: dict[str, list[tuple[float, int]]] = {}

    def before_train(self) -> None:
        """Cut off what comes again, and put the values of the iterations before into the storage.

        The first process is the one that has values and writes them.
        """
        if self.trainer.start_iter == 0 or not comm.is_main_process():
            return
        if self._path.exists():
            cut_off(self._path, self.trainer.start_iter)
        for name, values in self._recent.items():
            for value, iteration in values:
                self.trainer.storage.put_scalar(name, value, cur_iter=iteration)

    def state_dict(self) -> dict[str, Any]:
        """The last values of what is smoothed."""
        storage = self.trainer.storage
        smoothed = [name for name, smooth in storage.smoothing_hints().items() if smooth]
        # Time is not put in the first iterations: an old value would be written as a new one.
        return {
            name: storage.history(name).values()[-SMOOTHING_WINDOW:]
            for name in smoothed
            if name != "time"
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the values from a checkpoint."""
        self._recent = state_dict


def cut_off(path: Path, start_iter: int) -> None:
    """Shorten a file of metrics by the lines at its end that are not before an iteration.

    Args:
        path: JSON lines with ``iteration``; the last one may be cut short by a kill.
        start_iter: the first iteration that is still to come.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    while lines and not _is_before(lines[-1], start_iter):
        lines.pop()
    with path.open("r+b") as f:  # the writer has it open already, so it stays the same file
        f.truncate(sum(map(len, lines)))


def _is_before(line: bytes, start_iter: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["iteration"] < start_iter
    except ValueError:
        return False


def batching(cfg: CfgNode) -> dict[str, int]:
    """What a checkpoint says about how its batches were made."""
    return {"ims_per_batch": cfg.SOLVER.IMS_PER_BATCH, "world_size": comm.get_world_size()}


def check_batching(before: Mapping[str, int], cfg: CfgNode) -> None:
    """Check that a checkpoint counts in the batches of this run; log another number of processes.

    Args:
        before: :func:`batching` of the run that wrote the checkpoint; empty in those of old.
        cfg: of this run.

    Raises:
        ValueError: its total batch is another one.
    """
    if not before:
        return
    now = batching(cfg)
    if now["ims_per_batch"] != before["ims_per_batch"]:
        raise ValueError(
            f"The checkpoint in {cfg.OUTPUT_DIR} is of a run with SOLVER.IMS_PER_BATCH "
            f"{before['ims_per_batch']}, this one has {now['ims_per_batch']}, over all processes: "
            "iterations, schedule and the order of the images would not go on. Resume with "
            f"SOLVER.IMS_PER_BATCH {before['ims_per_batch']} and SOLVER.REFERENCE_WORLD_SIZE 0, on "
            "any number of processes that divides it; or start from its weights, by MODEL.WEIGHTS, "
            "without --resume and with another OUTPUT_DIR."
        )
    if now["world_size"] != before["world_size"]:
        logger.warning(
            f"The checkpoint was written by {before['world_size']} processes, and "
            f"{now['world_size']} go on: with the same batches and augmentations, and the same "
            "losses up to rounding. Only what a process takes of its own images depends on their "
            "number: batch norms that are not SyncBN, SOLVER.BATCH_PARTS, and random numbers that "
            "a model draws."
        )
