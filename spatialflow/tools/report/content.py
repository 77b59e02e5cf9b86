"""The numbers on the page, as the JSON that its script reads."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.utils.collect_env import collect_env_info
from tqdm import tqdm

import spatialflow
from spatialflow.evaluation.panoptic_quality import GROUPS, PanopticCounts
from spatialflow.utils.files import without_nan

from .outcomes import NOTHING, Confusions, ImageOutcome, image_quality, match_images
from .pictures import draw_image
from .saved import SavedEvaluation

HISTOGRAM_BINS = 20
_TASKS = {"bbox": "Boxes", "segm": "Masks", "sem_seg": "Stuff labels"}


def build_content(saved: SavedEvaluation, pictures: int, workers: int = 1) -> dict[str, Any]:
    """Score the predictions again and collect everything the page shows.

    Args:
        saved: the evaluation.
        pictures: how many of the best images, and how many of the worst.
        workers: processes.

    Raises:
        FileNotFoundError, ValueError: a PNG is missing or does not fit its segments.
    """
    categories = [{"id": c.id, "isthing": int(c.isthing), "name": c.name} for c in saved.categories]
    outcomes = match_images(saved.images, workers)
    total, qualities = PanopticCounts(categories), []
    confusions: Confusions = Counter()
    for outcome in outcomes:
        counts = PanopticCounts(categories)
        qualities.append(image_quality(outcome, counts))
        total += counts
        confusions += outcome.confusions()
    results = total.results()
    content = {
        "dataset": saved.name,
        "evaluated": len(saved.images),
        "annotated": saved.annotated,
        "date": saved.date.isoformat(timespec="minutes"),
        "weights": saved.weights,
        "groups": {name: results[name] for name in GROUPS},
        "outcome_counts": _outcome_counts(saved, confusions),
        "tasks": _other_tasks(saved),
        "classes": _classes(saved, results["per_class"]),
        "confusions": _confusions(saved, confusions),
        "histogram": _histogram([q["pq"] for q in qualities]),
        "images": _images(saved, outcomes, qualities, pictures),
        "notes": _notes(saved, results),
        "config": saved.config,
        "versions": _versions(),
        "environment": saved.environment or collect_env_info(),
        "environment_of_run": saved.environment is not None,
    }
    return without_nan(content)


def best_and_worst(qualities: Sequence[float], number: int) -> tuple[list[int], list[int]]:
    """Which images have the highest and the lowest PQ, best and worst first; none is in both.

    Args:
        qualities: PQ of each image; NaN for those without segments, which are left out.
        number: how many of each, at most.
    """
    order = sorted(
        (i for i, q in enumerate(qualities) if not math.isnan(q)), key=lambda i: (qualities[i], i)
    )
    worst = order[: min(number, (len(order) + 1) // 2)]
    best = order[::-1][: min(number, len(order) // 2)]
    return best, worst


def _classes(saved: SavedEvaluation, per_class: dict[int, dict]) -> list[dict]:
    return [
        {"name": c.name, "isthing": c.isthing, "color": c.color, **per_class[c.id]}
        for c in saved.categories
    ]


def _confusions(saved: SavedEvaluation, confusions: Confusions) -> list[list[int]]:
    """[ground-truth class, predicted class, count]; -1 is nothing."""
    number: dict[int | None, int] = {NOTHING: -1}
    for class_id, position in _class_numbers(saved).items():
        number[class_id] = position
    rows = ([number[gt], number[pred], n] for (gt, pred), n in confusions.items())
    return sorted(rows)


def _outcome_counts(saved: SavedEvaluation, confusions: Confusions) -> dict[str, dict[str, int]]:
    """How many segments of things and stuff were matched, confused, missed and false positives."""
    isthing: dict[int | None, bool] = {c.id: c.isthing for c in saved.categories}
    kinds = ("match", "confused", "missed", "false_positive")
    counts = {group: dict.fromkeys(kinds, 0) for group in ("Things", "Stuff")}
    for (gt, pred), n in confusions.items():
        known = pred if gt is NOTHING else gt
        if gt is NOTHING:
            kind = "false_positive"
        elif pred is NOTHING:
            kind = "missed"
        else:
            kind = "match" if gt == pred else "confused"
        counts["Things" if isthing[known] else "Stuff"][kind] += n
    return counts


def _other_tasks(saved: SavedEvaluation) -> dict[str, dict[str, float | None]]:
    """AP and IoU as ``results.json`` has them, without those of single classes."""
    return {
        _TASKS.get(task, task): {k: v for k, v in metrics.items() if "-" not in k}
        for task, metrics in saved.results.items()
        if task != "panoptic_seg"
    }


def _histogram(qualities: Sequence[float]) -> list[int]:
    bins = [0] * HISTOGRAM_BINS
    for quality in qualities:
        if not math.isnan(quality):
            bins[min(int(quality * HISTOGRAM_BINS), HISTOGRAM_BINS - 1)] += 1
    return bins


def _images(
    saved: SavedEvaluation, outcomes: list[ImageOutcome], qualities: list[dict], pictures: int
) -> dict[str, list[dict]]:
    chosen = best_and_worst([q["pq"] for q in qualities], pictures)
    bar = tqdm(total=sum(map(len, chosen)), unit="picture")
    shown: dict[str, list[dict]] = {}
    for kind, indices in zip(("best", "worst"), chosen, strict=True):
        shown[kind] = []
        for i in indices:
            image = saved.images[i]
            drawn = draw_image(image, outcomes[i], saved.categories)
            name = Path(image.file_name).name
            shown[kind].append({"name": name, **qualities[i], **drawn})
            bar.update()
    bar.close()
    return shown


def _notes(saved: SavedEvaluation, results: dict) -> list[str]:
    notes = []
    if len(saved.images) < saved.annotated:
        notes.append(
            f"Only {len(saved.images)} of the dataset's {saved.annotated} images were evaluated; "
            "the numbers are for these."
        )
    if not saved.results:
        notes.append("There is no results.json of this dataset beside the predictions: no AP, IoU.")
    recorded = saved.results.get("panoptic_seg", {}).get("PQ")
    counted = 100 * results["All"]["pq"]
    if recorded is not None and not abs(recorded - counted) < 0.005:
        notes.append(
            f"results.json has PQ {recorded:.2f}, the saved predictions {counted:.2f}: they are "
            "not of the same evaluation, or the files have changed since."
        )
    return notes


def _versions() -> dict[str, str]:
    return {
        "SpatialFlow": spatialflow.__version__,
        "Detectron2": detectron2.__version__,
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
    }


def _class_numbers(saved: SavedEvaluation) -> dict[int, int]:
    return {c.id: i for i, c in enumerate(saved.categories)}
