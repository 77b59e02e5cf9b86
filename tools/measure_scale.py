#!/usr/bin/env python
"""What `spatialflow predict` takes for itself: pictures a second and memory, with a stub model.

    python tools/measure_scale.py --work /tmp/scale --record

The pictures are small (64x64), and the model is a threshold, so that planning, scheduling, reading
and writing are all there is. "plain loop" reads, calls and writes the same in one process, without
shards, digests and fsync. A second table has the steps of the client alone. --record puts both into
measured.json.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from spatialflow.data.categories import Categories
from spatialflow.saved.predictions import PREDICTIONS_JSON, write_prediction
from spatialflow.tools.predict.inputs import ImageIds, open_source
from spatialflow.tools.predict.manifest import INPUTS, MANIFEST, plan
from spatialflow.tools.predict.merge import ERRORS, merge
from spatialflow.utils.files import read_json

TABLE, STEPS = "scale_stub", "scale_client"
COLUMNS = [
    "pictures",
    "who",
    "workers",
    "pictures / s",
    "CPU ms a picture",
    "client, MB",
    "worker, MB",
]
CATEGORIES = Categories.from_json(
    [{"id": 1, "name": "bright", "isthing": 1}, {"id": 2, "name": "dark", "isthing": 0}]
)


class Threshold:
    """The stub: bright pixels are one segment, the others another."""

    name = "threshold"
    categories = CATEGORIES

    def __call__(self, image):
        ids = np.where(image[..., 0] > 127, 1, 2).astype(np.int32)
        return ids, [
            {"id": 1, "isthing": True, "category_id": 0, "score": 1.0},
            {"id": 2, "isthing": False, "category_id": 0},
        ]


def build() -> Threshold:
    """For --predictor."""
    return Threshold()


def write_pictures(folder: Path, number: int) -> None:
    """Blocks of grey, as PNG."""
    folder.mkdir(parents=True)
    for i in range(number):
        blocks = np.random.RandomState(i).randint(0, 256, (8, 8, 3), np.uint8)
        blocks[0, :2, 0] = 0, 255
        picture = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
        cv2.imwrite(str(folder / f"{i:06}.png"), picture)


@dataclass
class Taken:
    """Seconds of a clock, and of the CPUs in this process and those it has waited for."""

    clock: float = 0.0
    cpu: float = 0.0

    def cells(self, number: int) -> list[str]:
        """Pictures a second, and CPU milliseconds a picture."""
        return [f"{number / self.clock:.0f}", f"{1000 * self.cpu / number:.1f}"]


@contextmanager
def timed() -> Iterator[Taken]:
    """What the block takes."""
    taken, clock, cpu = Taken(), time.perf_counter(), sum(os.times()[:4])
    yield taken
    taken.clock = time.perf_counter() - clock
    taken.cpu = sum(os.times()[:4]) - cpu


def plain_loop(pictures: Path, output: Path) -> None:
    """All pictures without anything around them."""
    model = build()
    for i, path in enumerate(sorted(pictures.iterdir())):
        ids, segments = model(cv2.imread(str(path)))
        write_prediction(str(output), i, f"{path.stem}.png", ids, segments)


def run(pictures: Path, output: Path, executor: str, workers: int) -> dict[str, str]:
    """Cells of the table that a run prints."""
    words = ["--input", pictures, "--output", output, "--executor", executor]
    words += ["--import", Path(__file__).resolve(), "--predictor", f"{Path(__file__).stem}:build"]
    command = [sys.executable, "-m", "spatialflow", "predict", *words, "--workers", workers]
    printed = subprocess.run(
        list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return dict(re.findall(r"^\| (\w.*?) +\| +(.*?) +\|$", printed, re.M))


def steps(pictures: Path, output: Path) -> list[list[str]]:
    """Cells of what the client does alone, on the output of a finished run."""
    content = read_json(output / MANIFEST)
    number = content["pictures"]
    settings = {k: v for k, v in content.items() if k not in ("pictures", "shards", "inputs")}
    source = open_source(pictures, output)
    begun = output.with_name("plan")
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir()
    with timed() as first:
        plan(begun, source, ImageIds(None, source), settings, threads=2)
    with timed() as again:
        manifest = plan(output, source, ImageIds(None, source), settings, threads=2)
    (output / ERRORS).unlink()
    with timed() as index:
        merge(manifest, "coco")
    return [
        [name, f"{1e6 * taken.clock / number:.0f}", f"{1e6 * taken.cpu / number:.0f}", size]
        for name, taken, size in (
            ("the plan, pictures read", first, _bytes(output / INPUTS, number)),
            ("the plan again, pictures not read", again, "-"),
            ("the index, two segments a picture", index, _bytes(output / PREDICTIONS_JSON, number)),
        )
    ]


def _bytes(path: Path, number: int) -> str:
    return f"{path.stat().st_size / number:.0f}"


def main() -> None:
    """Measure all and print the table."""
    from spatialflow.tools.zoo import measured  # with torch, which the workers do without

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder; what is in it is kept")
    parser.add_argument("--pictures", type=int, nargs="+", default=[200, 2000, 20000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--executors", nargs="+", default=["processes", "dask"])
    parser.add_argument("--record", action="store_true", help="write it into measured.json")
    args = parser.parse_args()
    rows = []
    for number in args.pictures:
        pictures = args.work / f"pictures_{number}"
        if not pictures.is_dir():
            write_pictures(pictures, number)
        with timed() as plain:
            plain_loop(pictures, args.work / "plain")
        rows.append([f"{number:,}", "plain loop", "1", *plain.cells(number), "-", "-"])
        print(*rows[-1], flush=True)
        for executor in args.executors:
            for workers in args.workers:
                output = args.work / "output"
                shutil.rmtree(output, ignore_errors=True)
                with timed() as taken:
                    cells = run(pictures, output, executor, workers)
                memory = [
                    cells[f"memory of {who}"].split()[0] for who in ("this process", "a worker")
                ]
                rows.append([f"{number:,}", executor, str(workers), *taken.cells(number), *memory])
                print(*rows[-1], flush=True)
    table: measured.Table = {
        "columns": COLUMNS,
        "align": ["---:", "---", *["---:"] * 5],
        "rows": rows,
    }
    client: measured.Table = {
        "columns": ["step", "microseconds a picture", "of these CPU", "bytes a picture"],
        "align": ["---", *["---:"] * 3],
        "rows": steps(pictures, output),
    }
    print(measured.markdown(table), measured.markdown(client), sep="\n")
    if args.record:
        measured.save({TABLE: table, STEPS: client})


if __name__ == "__main__":
    main()
