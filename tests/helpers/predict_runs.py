"""Runs of ``spatialflow predict`` with :mod:`counted_predictor`, and what they left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import cv2
import numpy as np

from spatialflow.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
SHARD_SIZE = 4


class Inline:
    """An executor that does the work itself, when it is asked for it."""

    def __init__(self, settings):
        pass

    def submit(self, function, *args):
        future = Future()
        try:
            future.set_result(function(*args))
        except Exception as e:
            future.set_exception(e)
        return future

    def slots(self):
        return 1

    def close(self):
        pass


def write_pictures(folder: Path, number: int) -> Path:
    """Pictures of noise whose first pixel has their number."""
    folder.mkdir(parents=True)
    for i in range(number):
        pixels = np.random.RandomState(i).randint(0, 256, (12 + i % 5, 16, 3), np.uint8)
        pixels[0, 0] = i % 256, i // 256, 0
        cv2.imwrite(str(folder / f"{i:04}.png"), pixels)
    return folder


class Runs:
    """Runs over pictures, each into an output of its own.

    Attributes:
        folder: a folder for all.
        number: of the pictures.
        pictures: the input.
        faults: the folder that the predictor is told of.
    """

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number
        self.pictures = write_pictures(folder / "pictures", number)
        self.faults = folder / "faults"
        self.faults.mkdir()

    def arguments(self, output: str, *more: str) -> list[str]:
        words = ["--input", self.pictures, "--output", self.folder / output]
        words += ["--predictor", "counted_predictor:build", "--shard-size", SHARD_SIZE, *more]
        return list(map(str, words))

    def here(self, output: str, *more: str) -> int:
        """Run in this process; returns the exit code."""
        return run_command("predict", self.arguments(output, "--executor", "inline", *more))

    def start(self, output: str, *more: str, prefix: Sequence[str] = ()) -> subprocess.Popen:
        """Start in a process of its own; ``prefix``: what runs its command."""
        command = [*prefix, sys.executable, "-m", "spatialflow", "predict"]
        command += self.arguments(output, *more)
        return subprocess.Popen(
            command,
            env=environment(self.faults),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, output: str, *more: str) -> str:
        """Run in a process of its own to the end; returns what it printed."""
        process = self.start(output, *more)
        printed, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        return printed

    def order(self, fault: str, number: int) -> Path:
        """Order a fault."""
        path = self.faults / f"{fault}-{number}"
        path.touch()
        return path

    def calls(self) -> list[tuple[int, int]]:
        """Number of the picture and process of each call so far."""
        path = self.faults / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(n), int(pid)) for n, pid in map(str.split, lines)]

    def count(self) -> Counter:
        """How often each picture was predicted."""
        return Counter(number for number, _ in self.calls())

    def worker_at(self, number: int) -> int:
        """The process that predicts a picture now, once it does."""
        until(lambda: number in self.count())
        return next(pid for n, pid in reversed(self.calls()) if n == number)

    def finished(self, output: str) -> set[int]:
        """Numbers of the pictures whose shards are finished."""
        folders = (self.folder / output / "panoptic_predictions").glob("*/shard.json")
        indices = [int(path.parent.name) for path in folders]
        numbers = {i * SHARD_SIZE + k for i in indices for k in range(SHARD_SIZE)}
        return numbers & set(range(self.number))

    def content(self, output: str) -> dict[str, bytes]:
        """All files of an output by name."""
        return content_of(self.folder / output)


def environment(faults: Path) -> dict[str, str]:
    """For processes that load the predictor."""
    paths = [str(ROOT), str(ROOT / "tests" / "helpers")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "COUNTED_PREDICTOR": str(faults),
    }


def content_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder by name."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"), key=str)
        if p.is_file()
    }


def assert_same(runs: Runs, output: str, undisturbed: dict[str, bytes]) -> None:
    """An output has the files of an undisturbed run, byte for byte, and no others."""
    own = runs.content(output)
    assert own.keys() == undisturbed.keys()
    # The plan has the times of the pictures, which each run has written for itself.
    assert not [n for n in own if n != "inputs.jsonl" and own[n] != undisturbed[n]]


def kill(*pids: int) -> None:
    """End processes at once."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
