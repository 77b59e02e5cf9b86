"""A model for ``spatialflow predict --predictor`` that writes down its calls and fails on order.

The environment variable ``COUNTED_PREDICTOR`` names a folder. There ``calls`` gets a line a call,
the picture's number and the process, and files order faults, by the picture's number:

    hold-N      while it is there, picture N takes time
    hang-N      picture N never ends, and Python's lock is not given free
    hang_once-N the same, the first time
    die-N       the process is killed at picture N
    raise-N     the model fails at picture N
    once-N      the model fails at picture N the first time

Nothing here imports torch.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import numpy as np

from spatialflow.data.categories import Categories

CATEGORIES = Categories.from_json(
    [
        {"id": 3, "name": "disk", "isthing": 1, "color": [200, 60, 50]},
        {"id": 11, "name": "grass", "isthing": 0, "color": [70, 130, 70]},
    ]
)


class CountedPredictor:
    """Bright pixels are a disk, the others are grass."""

    name = "counted"
    categories = CATEGORIES

    def __call__(self, image):
        number = int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])
        folder = Path(os.environ["COUNTED_PREDICTOR"])
        with (folder / "calls").open("a") as f:
            f.write(f"{number} {os.getpid()}\n")
        _fail(folder, number)
        ids = np.where(image.max(axis=2) > 127, 1, 2).astype(np.int32)
        segments = [
            {"id": 1, "isthing": True, "category_id": 0, "score": 0.9},
            {"id": 2, "isthing": False, "category_id": 1},
        ]
        return ids, [s for s in segments if (ids == s["id"]).any()]


def _fail(folder: Path, number: int) -> None:
    while (folder / f"hold-{number}").exists():
        time.sleep(0.02)
    if (folder / f"hang-{number}").exists() or _taken(folder / f"hang_once-{number}"):
        ctypes.PyDLL(None).sleep(600)  # does not give the lock free
    if (folder / f"die-{number}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (folder / f"raise-{number}").exists() or _taken(folder / f"once-{number}"):
        raise RuntimeError("out of memory")


def _taken(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def build() -> CountedPredictor:
    """What ``--predictor counted_predictor:build`` calls."""
    return CountedPredictor()
