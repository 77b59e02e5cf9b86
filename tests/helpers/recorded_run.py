"""Training runs that keep their losses; in a module of its own, so that processes can import it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from tiny_runs import tiny_config

from spatialflow.engine import Trainer
from spatialflow.engine.resuming import TrainingStopped
from spatialflow.errors import UserError
from spatialflow.utils.parallel import on_stop_signal


class Recorder(HookBase):
    """Keeps the losses that the trainer logs."""

    def __init__(self):
        self.rows = []

    def after_step(self):
        latest = self.trainer.storage.latest()
        names = [name for name in latest if "loss" in name]
        self.rows.append({name: latest[name][0] for name in sorted(names)})


class KilledBefore(HookBase):
    """Stops training before an iteration, with all the hooks of the one before it run."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


class Poison:
    """A model's forward hook that makes the losses NaN from an iteration on."""

    def __init__(self, calls_before):
        self.calls = calls_before

    def __call__(self, model, inputs, losses):
        self.calls -= model.training
        return {k: v * float("nan") for k, v in losses.items()} if self.calls < 0 else losses


def make_trainer(cfg) -> tuple[Trainer, Recorder]:
    seed_all_rng(cfg.SEED)
    trainer, recorder = Trainer(cfg), Recorder()
    trainer.register_hooks([recorder])
    return trainer, recorder


def run(cfg, resume: bool = False) -> tuple[Trainer, list[dict[str, float]]]:
    """Train to the end of the schedule; the trainer and the losses of each iteration."""
    trainer, recorder = make_trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer, recorder.rows


def everywhere(norm: str) -> list[str]:
    """Overrides for this norm in every part of the model; the backbone is trained from nothing."""
    parts = ("RESNETS", "FPN", "ROI_MASK_HEAD", "SEM_SEG_HEAD")
    return [text for part in parts for text in (f"MODEL.{part}.NORM", norm)]


def syncbn_in_processes(datasets: str, output: str) -> None:
    """In each of several processes: a run with SyncBN everywhere, one process without things."""
    torch.set_num_threads(1)
    trainer, recorder = make_trainer(
        tiny_config(Path(datasets), Path(output), 4, everywhere("SyncBN"))
    )
    thing_head = trainer._trainer.model.module.thing_head
    if comm.get_rank() == 1:
        sample = thing_head.sample

        def sample_nothing(detections, gt_instances):
            regions = sample(detections, gt_instances)
            return [r[:0] for r in regions] if trainer.iter == 3 else regions

        thing_head.sample = sample_nothing
    trainer.train()
    Path(output, f"report_{comm.get_rank()}.json").write_text(json.dumps(recorder.rows))


def stop_parent(folder: str) -> None:
    """In each of several processes: wait for a signal that one of them sends to their parent."""

    def stop(number, frame):
        Path(folder, str(comm.get_rank())).touch()

    with on_stop_signal(stop):
        comm.synchronize()
        if comm.get_rank() == 0:
            os.kill(os.getppid(), signal.SIGTERM)
        deadline = time.monotonic() + 60
        while not Path(folder, str(comm.get_rank())).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    raise TrainingStopped


def in_processes(datasets: str, output: str) -> None:
    """In each of several processes: a whole run, one that process 1 alone makes fail, an error."""
    torch.set_num_threads(1)
    cfg = tiny_config(Path(datasets), Path(output))
    trainer, rows = run(cfg)
    device_ids = trainer.model.device_ids
    poisoned, _ = make_trainer(tiny_config(Path(datasets), Path(output, "poisoned")))
    if comm.get_rank() == 1:
        poisoned._trainer.model.module.register_forward_hook(Poison(1), prepend=True)
    try:
        poisoned.train()
        message = ""
    except FloatingPointError as e:
        message = str(e)
    report = {
        "rows": rows,
        "world_size": comm.get_world_size(),
        "local": [comm.get_local_rank(), comm.get_local_size()],
        "device_ids": device_ids,
        "message": message,
    }
    Path(output, f"report_{comm.get_rank()}.json").write_text(json.dumps(report))
    raise UserError("file.json is wrong")
