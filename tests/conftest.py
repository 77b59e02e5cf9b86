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

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = Path(os.environ.get("SPATIALFLOW_SAMPLES", ROOT.parent / "shared" / "data"))
"""Real datasets, which may lie beside the repository, instead of those that stand in for them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs recordings that only another SPATIALFLOW_GOLDEN has."""
    from golden import is_recorded

    def lacks_recording(item: pytest.Item) -> bool:
        return any(not is_recorded(m.args[0]) for m in item.iter_markers("recording"))

    if left_out := [item for item in items if lacks_recording(item)]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def coco_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's two sample images, laid out as below DETECTRON2_DATASETS; else plain pictures."""
    from stand_in_datasets import write_coco_sample

    real = SAMPLES / "coco_sample"
    return real if real.is_dir() else write_coco_sample(tmp_path_factory.mktemp("coco_sample"))


@pytest.fixture(scope="session")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CamVid in COCO panoptic format; else drawn scenes with its classes."""
    from stand_in_datasets import write_camvid

    real = SAMPLES / "camvid_panoptic"
    return real if real.is_dir() else write_camvid(tmp_path_factory.mktemp("camvid_panoptic"))


@pytest.fixture(scope="session")
def real_camvid() -> Path:
    """CamVid in COCO panoptic format; skips where it is absent."""
    folder = SAMPLES / "camvid_panoptic"
    if not folder.is_dir():
        pytest.skip("the optional dataset CamVid: SPATIALFLOW_SAMPLES has no camvid_panoptic")
    return folder


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
