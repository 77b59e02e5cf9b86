"""The losses of a batch in one process, or of its halves in two; importable by processes."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from tiny_runs import tiny_config

from spatialflow.config import config_dir
from spatialflow.data import PanopticMapper, load_dataset_dicts


def without_chance() -> None:
    """Make what models draw for an image independent of the other images of its process."""
    torch.randperm = lambda n, **options: torch.arange(n, device=options.get("device"))
    rand = torch.rand

    @functools.wraps(rand)
    def repeated(*size, **options):
        return rand(*size, generator=torch.Generator().manual_seed(0), dtype=options.get("dtype"))

    torch.rand = repeated


def losses_of(name: str, datasets: str, output: str, share: slice) -> dict[str, float]:
    """The losses of a small model of a toy config on a part of a batch of two images."""
    torch.set_num_threads(1)
    few = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32"]
    config = config_dir() / "toy" / f"{name}.yaml"
    cfg = tiny_config(Path(datasets), Path(output), overrides=few, config=config)
    seed_all_rng(1)
    mapper = PanopticMapper(cfg, is_train=True)
    batch = [mapper(x) for x in load_dataset_dicts(cfg.DATASETS.TRAIN[0])[:2]]
    torch.manual_seed(0)
    model = build_model(cfg).train()
    without_chance()
    with EventStorage():
        return {key: float(value) for key, value in model(batch[share]).items()}


def in_processes(name: str, datasets: str, output: str) -> None:
    """In each of two processes: the losses of its half of the batch, into a file."""
    rank = comm.get_rank()
    losses = losses_of(name, datasets, output, slice(rank, rank + 1))
    torch.save(losses, Path(output, f"losses_{rank}.pt"))
