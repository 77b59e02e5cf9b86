"""The tables of ``tools/run_ablation.py``: means over seeds, and differences to the first row."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from spatialflow.data.targets import read_panoptic_png
from spatialflow.evaluation.bootstrap import bootstrap_values, interval
from spatialflow.evaluation.scoring import score_folder
from spatialflow.saved.dataset import DATASET_JSON, SavedDataset
from spatialflow.saved.predictions import PREDICTIONS_JSON, ImagePair, PanopticFolder, read_pairs

METRICS = {
    "PQ": ("panoptic_seg", "PQ"),
    "PQ Th": ("panoptic_seg", "PQ_th"),
    "PQ St": ("panoptic_seg", "PQ_st"),
    "box AP": ("bbox", "AP"),
    "mIoU": ("sem_seg", "mIoU"),
}
PAIRED = "PQ, to the first"
RESAMPLED = "95 % over images"
MAP_MIOU = "mIoU of the map"


class Replicates(NamedTuple):
    """Metrics of resampled validation images, (R,) each, in percent.

    Attributes:
        pq: PQ.
        miou: mean IoU of all classes, things among them, of the panoptic map without its
            instances; column mIoU is that of the stuff head alone.
    """

    pq: np.ndarray
    miou: np.ndarray


def as_table(
    results: Mapping[str, Sequence[Mapping]],
    resampled: Mapping[str, Replicates] | None = None,
) -> str:
    """Markdown: a row for each arm with mean and standard deviation over its seeds.

    A single seed has no deviation and is given alone. Where there are several arms, a column has
    the difference of PQ to the first one, seed by seed.

    Args:
        results: evaluation results of each seed, by arm.
        resampled: :func:`resample` of each arm; adds the intervals of PQ, of the map's mIoU and of
            their differences to the first arm's.
    """
    first = next(iter(results))
    rows = []
    for arm, runs in results.items():
        row = [arm, *(mean(run[task][metric] for run in runs) for task, metric in METRICS.values())]
        if len(results) > 1:
            pairs = zip(runs, results[first], strict=True)
            row.append("" if arm == first else mean((pq(a) - pq(b) for a, b in pairs), "+"))
        if resampled:
            for own, of_first in zip(resampled[arm], resampled[first], strict=True):
                row += [span(own), "" if arm == first else span(own - of_first, "+")]
        rows.append(row)
    columns = ["config", *METRICS, *[PAIRED] * (len(results) > 1)]
    if resampled:
        columns += [f"PQ, {RESAMPLED}", f"{PAIRED}, {RESAMPLED}"]
        columns += [f"{MAP_MIOU}, {RESAMPLED}", f"{MAP_MIOU}, to the first, {RESAMPLED}"]
    return tabulate(rows, columns, tablefmt="github", disable_numparse=True)


def pq(run: Mapping) -> float:
    """PQ of the evaluation results of a run."""
    return run["panoptic_seg"]["PQ"]


def mean(values: Iterable[float], sign: str = "") -> str:
    """ "mean ± sample deviation"; of a single value the value. ``sign`` "+": with its sign."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}"


def span(values: np.ndarray, sign: str = "") -> str:
    """ "low to high", the 95 % interval of replicates."""
    low, high = interval(values)
    return f"{low:{sign}.1f} to {high:{sign}.1f}"


def resample(folders: Sequence[Path], replicates: int) -> Replicates:
    """The metrics of resampled validation images, means over the runs of an arm.

    Every call draws the same images, so that differences between arms are paired.

    Args:
        folders: of the runs, evaluated with TEST.SAVE_PREDICTIONS.
        replicates: R.

    Raises:
        SystemExit: a run has not one saved evaluation.
    """
    runs = [_resample_run(folder, replicates) for folder in folders]
    return Replicates(*(np.mean(values, axis=0) for values in zip(*runs, strict=True)))


def _resample_run(folder: Path, replicates: int) -> Replicates:
    saved = list(folder.glob(f"inference/*/{DATASET_JSON}"))
    if len(saved) != 1:
        raise SystemExit(
            f"{folder}/inference has the predictions of {len(saved)} datasets; --bootstrap needs "
            "those of one. Remove the run to train it anew."
        )
    dataset = SavedDataset.open(str(saved[0]))
    predictions = PanopticFolder(str(saved[0].with_name(PREDICTIONS_JSON)))
    score = score_folder(predictions, dataset.truth)
    pq_values = bootstrap_values(score.images, score.counts.categories, replicates)["PQ"]
    return Replicates(pq_values, bootstrap_miou(confusions(predictions, dataset.truth), replicates))


def confusions(predictions: PanopticFolder, truth: PanopticFolder) -> np.ndarray:
    """(N, C + 1, C + 1) pixels of each image by true and by predicted class; C is no class."""
    paired = read_pairs(predictions, truth)
    classes = {c["id"]: i for i, c in enumerate(paired.categories.as_json())}
    return np.stack([_confusion(pair, classes) for pair in paired.pairs])


def _confusion(pair: ImagePair, classes: Mapping[int, int]) -> np.ndarray:
    true = _class_map(pair.truth_png, pair.truth["segments_info"], classes)
    predicted = np.full_like(true, len(classes))
    if pair.predicted is not None and pair.png is not None:
        predicted = _class_map(pair.png, pair.predicted["segments_info"], classes)
    size = len(classes) + 1
    counts = np.bincount((true * size + predicted).ravel(), minlength=size**2)
    return counts.reshape(size, size)


def _class_map(png: str, segments: Iterable[Mapping], classes: Mapping[int, int]) -> np.ndarray:
    ids, where = np.unique(read_panoptic_png(png), return_inverse=True)
    by_id = {s["id"]: classes[s["category_id"]] for s in segments}
    return np.array([by_id.get(i, len(classes)) for i in ids.tolist()])[where]


def bootstrap_miou(images: np.ndarray, replicates: int, seed: int = 0) -> np.ndarray:
    """(R,) mIoU in percent of resampled sets of images, over the classes that a set has.

    Args:
        images: see :func:`confusions`.
        replicates: R.
        seed: of the random numbers.
    """
    draws = np.random.default_rng(seed).integers(len(images), size=(replicates, len(images)))
    return np.array([miou(images[drawn].sum(axis=0)) for drawn in draws])


def miou(confusion: np.ndarray) -> float:
    """Mean IoU in percent; pixels whose true class is none do not count."""
    confusion = confusion[:-1]
    right = np.diagonal(confusion)
    union = confusion.sum(axis=1) + confusion.sum(axis=0)[:-1] - right
    return 100 * float(np.mean(right[union > 0] / union[union > 0]))
