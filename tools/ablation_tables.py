"""The tables of ``tools/run_ablation.py``: means over seeds, and differences to the first row."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from spatialflow.evaluation.bootstrap import bootstrap_values, interval
from spatialflow.evaluation.scoring import score_folder
from spatialflow.saved.dataset import DATASET_JSON, SavedDataset
from spatialflow.saved.predictions import PREDICTIONS_JSON, PanopticFolder

METRICS = {
    "PQ": ("panoptic_seg", "PQ"),
    "PQ Th": ("panoptic_seg", "PQ_th"),
    "PQ St": ("panoptic_seg", "PQ_st"),
    "box AP": ("bbox", "AP"),
    "mIoU": ("sem_seg", "mIoU"),
}
PAIRED = "PQ, to the first"
RESAMPLED = "95 % over images"


def as_table(
    results: Mapping[str, Sequence[Mapping]],
    resampled: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Markdown: a row for each arm with mean and standard deviation over its seeds.

    A single seed has no deviation and is given alone. Where there are several arms, a column has
    the difference of PQ to the first one, seed by seed.

    Args:
        results: evaluation results of each seed, by arm.
        resampled: :func:`resampled_pq` of each arm; adds the intervals of PQ and of its difference
            to the first arm's.
    """
    first = next(iter(results))
    rows = []
    for arm, runs in results.items():
        row = [arm, *(mean(run[task][metric] for run in runs) for task, metric in METRICS.values())]
        if len(results) > 1:
            pairs = zip(runs, results[first], strict=True)
            row.append("" if arm == first else mean((pq(a) - pq(b) for a, b in pairs), "+"))
        if resampled:
            row.append(span(resampled[arm]))
            row.append("" if arm == first else span(resampled[arm] - resampled[first], "+"))
        rows.append(row)
    columns = ["config", *METRICS, *[PAIRED] * (len(results) > 1)]
    columns += [f"PQ, {RESAMPLED}", f"{PAIRED}, {RESAMPLED}"] if resampled else []
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


def resampled_pq(folders: Sequence[Path], replicates: int) -> np.ndarray:
    """(R,) PQ of resampled validation images, the mean over the runs of an arm.

    Every call draws the same images, so that differences between arms are paired.

    Args:
        folders: of the runs, evaluated with TEST.SAVE_PREDICTIONS.
        replicates: R.

    Raises:
        SystemExit: a run has not one saved evaluation.
    """
    return np.mean([_resampled_run(folder, replicates) for folder in folders], axis=0)


def _resampled_run(folder: Path, replicates: int) -> np.ndarray:
    saved = list(folder.glob(f"inference/*/{DATASET_JSON}"))
    if len(saved) != 1:
        raise SystemExit(
            f"{folder}/inference has the predictions of {len(saved)} datasets; --bootstrap needs "
            "those of one. Remove the run to train it anew."
        )
    dataset = SavedDataset.open(str(saved[0]))
    predictions = PanopticFolder(str(saved[0].with_name(PREDICTIONS_JSON)))
    score = score_folder(predictions, dataset.truth)
    return bootstrap_values(score.images, score.counts.categories, replicates)["PQ"]
