"""What all tests share: one thread, a fixed seed, and where the optional sample data lies."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

# Sums come out the same whatever the number of cores, and test processes do not fight for them;
# set before torch is imported, so that processes started by tests inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real images with panoptic ground truth that may lie beside the repository."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _sample(name: str) -> Path:
    folder = SAMPLES / name
    if not folder.is_dir():
        pytest.skip(f"sample data {name} not found")
    return folder


@pytest.fixture(scope="session")
def coco_sample() -> Path:
    """Two COCO images, laid out as below DETECTRON2_DATASETS; skips where they are absent."""
    return _sample("coco_sample")


@pytest.fixture(scope="session")
def camvid() -> Path:
    """CamVid in COCO panoptic format; skips where it is absent."""
    return _sample("camvid_panoptic")


@pytest.fixture(scope="session")
def toy_datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datasets folder with a few of the toy scenes."""
    from spatialflow.tools import toy

    root = tmp_path_factory.mktemp("datasets")
    toy.generate(str(root), train=12, val=3)
    return root


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder; modules of the user that are imported from it are forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in {n for n in sys.modules if n.startswith("my_")} - before:
        del sys.modules[name]
