"""Data loaders: training batches that depend on the seed and the iteration only, and test images.

Every process works out the same endless sequence of *global* batches, which is cheap because it
deals in indices, and loads its own part of each. A sample's augmentation is drawn from the seed and
the sample's position in that sequence. So the batches of an iteration do not depend on the number
of workers or processes, nor on whether training was resumed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from spatialflow.utils.parallel import end_with_parent, leave_stopping_to_parent

from .mapper import PanopticMapper
from .register import load_dataset_dicts

Position = tuple[int, int]
"""Number of a sample in the endless sequence, and the index of its image."""


def build_train_loader(cfg: CfgNode, start_iter: int = 0) -> DataLoader:
    """Endless loader of this process's part of every batch of SOLVER.IMS_PER_BATCH images.

    Args:
        cfg: DATASETS.TRAIN, DATALOADER, INPUT, SEED (below 0: a random one, the same in all
            processes) and SOLVER.IMS_PER_BATCH are read.
        start_iter: the iteration to begin with; the batches of earlier ones are passed over
            without loading them.

    Returns:
        Iterable of lists of training samples, see :class:`PanopticMapper`.

    Raises:
        FileNotFoundError, ValueError: bad data, see :func:`load_dataset_dicts`, an empty training
            set, a batch size that the processes cannot share, or an unknown sampler.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN} is not available; set it to "
            "TrainingSampler."
        )
    batch_size, world_size = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch_size}, which {world_size} processes cannot share "
            "evenly; set a multiple of their number."
        )
    dicts = _training_dicts(cfg)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    wide = [d["width"] > d["height"] for d in dicts] if cfg.DATALOADER.ASPECT_RATIO_GROUPING else []
    batches = TrainBatches(
        groups=wide or [0] * len(dicts),
        batch_size=batch_size,
        seed=seed,
        start_iter=start_iter,
        part=(comm.get_rank(), world_size),
    )
    return DataLoader(
        SeededMap(dicts, PanopticMapper(cfg, is_train=True), seed),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_start_worker,
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Loader of a dataset's images, each once and in order, a contiguous part for each process.

    Returns:
        Iterable of lists of one dict with ``image``, ``height``, ``width``, ``file_name`` and
        ``image_id``.
    """
    loader = build_detection_test_loader(
        load_dataset_dicts(dataset_name),
        mapper=PanopticMapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    loader.worker_init_fn = _stay_with_parent  # Detectron2's function does not take it
    return loader


class TrainBatches(Sampler):
    """Endless batches of positions: shuffled epochs, grouped, cut into parts for the processes.

    Args:
        groups: the group of each image; a batch has images of one group only.
        batch_size: images in a batch, over all processes.
        seed: seed of the shuffling.
        start_iter: number of batches to skip.
        part: this process's number and the number of processes; divides ``batch_size``.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        seed: int,
        start_iter: int = 0,
        part: tuple[int, int] = (0, 1),
    ):
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.start_iter = start_iter
        self.part = part

    def __iter__(self) -> Iterator[list[Position]]:
        rank, world_size = self.part
        share = self.batch_size // world_size
        for batch in itertools.islice(self._global_batches(), self.start_iter, None):
            yield batch[rank * share : (rank + 1) * share]

    def _global_batches(self) -> Iterator[list[Position]]:
        waiting: dict[int, list[Position]] = {group: [] for group in set(self.groups)}
        for position, index in enumerate(self._indices()):
            group = self.groups[index]
            waiting[group].append((position, index))
            if len(waiting[group]) == self.batch_size:
                yield waiting[group]
                waiting[group] = []

    def _indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(len(self.groups), generator=generator).tolist()


class SeededMap(Dataset):
    """Maps the dict of an image with random generators seeded for the sample's position."""

    def __init__(self, dicts: list[dict[str, Any]], mapper: Callable, seed: int):
        # Serialised, so that worker processes share one copy.
        self.dicts = DatasetFromList(dicts, copy=False)
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, at: Position) -> dict[str, Any]:
        position, index = at
        with _seeded(self.seed, position):
            return self.mapper(self.dicts[index])


@contextmanager
def _seeded(seed: int, position: int) -> Iterator[None]:
    """Seed random, numpy and torch (CPU); afterwards they are as before."""
    value = int(np.random.SeedSequence((seed, position)).generate_state(1)[0])
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(value)
            np.random.seed(value)
            torch.manual_seed(value)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _training_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    dicts = [d for name in cfg.DATASETS.TRAIN for d in load_dataset_dicts(name)]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        # Images with stuff only have something to teach; images that are all void do not.
        dicts = [d for d in dicts if d.get("segments_info") or "annotations" in d]
    if not dicts:
        raise ValueError(
            f"No image to train on in DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)}; name a dataset "
            "with annotated images."
        )
    return dicts


def _stay_with_parent(worker_id: int) -> None:
    leave_stopping_to_parent()
    end_with_parent()


def _start_worker(worker_id: int) -> None:
    _stay_with_parent(worker_id)
    # The workers are the parallelism; OpenCV's own threads on top would compete for the cores.
    cv2.setNumThreads(0)
