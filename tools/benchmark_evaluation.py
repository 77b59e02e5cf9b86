#!/usr/bin/env python
"""Time PQ of predictions on disk against panopticapi's own evaluation in several processes.

    python tools/benchmark_evaluation.py --images 1000

makes pairs of 640x480 maps, scores them with both in turn, several times, and prints the times,
their ratio and whether the numbers agree. Both read JSONs and PNGs from disk, with as many
processes as there are cores; the ratio is of runs side by side, so that it holds on a busy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from panopticapi.evaluation import pq_compute
from panopticapi.utils import id2rgb
from PIL import Image

from spatialflow.evaluation.scoring import score_folder
from spatialflow.saved.predictions import PanopticFolder

WIDTH, HEIGHT = 640, 480
CATEGORIES = [{"id": i, "name": str(i), "isthing": int(i <= 80)} for i in range(1, 134)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        truth, predictions = (Path(folder, side) for side in ("truth", "predictions"))
        write_images(truth, predictions, args.images)
        ratios = [compare(truth, predictions) for _ in range(args.rounds)]
    print(f"median ratio {statistics.median(ratios):.2f}")


def compare(truth: Path, predictions: Path) -> float:
    """Score with both; how many times faster this project is."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = pq_compute(f"{truth}.json", f"{predictions}.json", str(truth), str(predictions))
    middle = time.perf_counter()
    ours = score_folder(
        PanopticFolder(f"{predictions}.json"),
        PanopticFolder(f"{truth}.json"),
        workers=os.cpu_count(),
    ).counts.results()
    end = time.perf_counter()
    difference = max(
        abs(ours[group][key] - theirs[group][key])
        for group in ("All", "Things", "Stuff")
        for key in ("pq", "sq", "rq")
    )
    ratio = (middle - start) / (end - middle)
    print(
        f"panopticapi {middle - start:.2f} s, spatialflow {end - middle:.2f} s, ratio {ratio:.2f}, "
        f"largest difference {difference:.1e}",
        flush=True,
    )
    return ratio


def write_images(truth: Path, predictions: Path, number: int) -> None:
    """Pairs of maps as COCO has them: 8 to 24 segments with ragged outlines, and void."""
    rng = np.random.default_rng(0)
    contents: dict[Path, list[dict]] = {truth: [], predictions: []}
    for folder in contents:
        folder.mkdir()
    for image_id in range(number):
        size = int(rng.integers(8, 25))
        points, classes = rng.random((size, 2)) * (WIDTH, HEIGHT), rng.integers(1, 134, size)
        bend = _smooth(rng, 40, 25)
        for folder, shift in ((truth, 0), (predictions, 6)):
            index = _nearest(rng, points + rng.normal(size=points.shape) * shift, bend)
            ids = rng.choice(np.arange(1, 2**24), size, replace=False)
            id_map = ids[index]
            if folder == truth:
                id_map[_smooth(rng, 60, 1)[0] > 1.6] = 0
            name = f"{image_id:06}.png"
            Image.fromarray(id2rgb(id_map)).save(folder / name)
            labels = np.where(
                rng.random(size) < 0.2 * (shift > 0), rng.permutation(classes), classes
            )
            found = zip(ids.tolist(), labels.tolist(), strict=True)
            segments = [
                {"id": i, "category_id": c, "iscrowd": 0, "area": int((id_map == i).sum())}
                for i, c in found
            ]
            segments = [s for s in segments if s["area"]]
            entry = {"image_id": image_id, "file_name": name, "segments_info": segments}
            contents[folder].append(entry)
    images = [
        {"id": i, "file_name": f"{i:06}.jpg", "height": HEIGHT, "width": WIDTH}
        for i in range(number)
    ]
    for folder, entries in contents.items():
        content = {"images": images, "annotations": entries, "categories": CATEGORIES}
        Path(f"{folder}.json").write_text(json.dumps(content))


def _smooth(rng: np.random.Generator, scale: int, strength: float) -> np.ndarray:
    """(2, H, W) noise that changes over ``scale`` pixels."""
    coarse = rng.normal(size=(2, HEIGHT // scale, WIDTH // scale)).astype(np.float32)
    return strength * np.stack([cv2.resize(c, (WIDTH, HEIGHT)) for c in coarse])


def _nearest(rng: np.random.Generator, points: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """(H, W) number of the nearest point, in a plane that is bent and ragged."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32) + bend + _smooth(rng, 8, 2)
    best = np.full((HEIGHT, WIDTH), np.inf, np.float32)
    index = np.zeros((HEIGHT, WIDTH), np.int64)
    for i, point in enumerate(points.astype(np.float32)):
        distance = (x - point[0]) ** 2 + (y - point[1]) ** 2
        nearer = distance < best
        best[nearer], index[nearer] = distance[nearer], i
    return index


if __name__ == "__main__":
    main()
