"""Outcome of every segment: match, confused with another class, missed, false positive.

PQ compares segments of one class only. Here they are also matched regardless of class, by the same
rule (IoU > 0.5, void left out), so that a segment that was found and misnamed can be told from one
that was not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from spatialflow.data.targets import read_panoptic_png
from spatialflow.evaluation.panoptic_quality import (
    PanopticCounts,
    SegmentMatches,
    match_overlaps,
    of_one_class,
    segment_overlaps,
)
from spatialflow.utils.parallel import in_parallel

from .saved import SavedImage

NOTHING = None
"""In a confusion, in place of a category id: no segment at all."""

Confusions = Counter[tuple[int | None, int | None]]
"""How often (ground-truth category, predicted category) were matched regardless of class."""


@dataclass(frozen=True)
class ImageOutcome:
    """One image: its matches as PQ counts them, and regardless of class."""

    matches: SegmentMatches
    any_class: SegmentMatches

    def confusions(self) -> Confusions:
        """Count the image's pairs; missed segments and false positives are paired with NOTHING.

        A predicted segment that PQ ignores, because it lies on void or crowd, is not among them.
        """
        gt, pred = self.matches.gt_categories, self.matches.pred_categories
        pairs = zip(
            gt[self.any_class.gt_index].tolist(),
            pred[self.any_class.pred_index].tolist(),
            strict=True,
        )
        counts: Confusions = Counter(pairs)
        counts.update((c, NOTHING) for c in gt[self.any_class.missed].tolist())
        counts.update((NOTHING, c) for c in pred[self.false_positives()].tolist())
        return counts

    def false_positives(self) -> np.ndarray:
        """(P,) bool: predicted segments that are false positives and match nothing of any class."""
        unmatched = self.matches.spurious.copy()
        unmatched[self.any_class.pred_index] = False
        return unmatched


def read_maps(image: SavedImage) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) id maps of ground truth and prediction."""
    return read_panoptic_png(image.truth_png), read_panoptic_png(image.png)


def match_image(image: SavedImage) -> ImageOutcome:
    """Match the segments of one image.

    Args:
        image: its files are read here.

    Raises:
        FileNotFoundError, ValueError: a file is missing, is no panoptic PNG or does not fit its
            segment list.
    """
    truth_map, pred_map = read_maps(image)
    sides = image.segments, image.truth_segments
    try:
        shared = segment_overlaps(pred_map, sides[0], truth_map, sides[1])
        matches = match_overlaps(shared, *sides)
        any_class = match_overlaps(shared, *map(of_one_class, sides))
    except ValueError as e:
        raise ValueError(f"Ground truth {image.truth_png}, prediction {image.png}: {e}.") from e
    return ImageOutcome(matches, any_class)


def match_images(images: Sequence[SavedImage], workers: int = 1) -> list[ImageOutcome]:
    """Match the segments of all images in several processes, with a progress bar.

    Raises:
        OSError: a process died.
        FileNotFoundError, ValueError: see :func:`match_image`.
    """
    outcomes = in_parallel(match_image, images, workers)
    try:
        return list(tqdm(outcomes, total=len(images), unit="image"))
    except BrokenProcessPool as e:
        raise OSError(
            "A worker process died, perhaps out of memory; try with fewer --workers."
        ) from e


def image_quality(outcome: ImageOutcome, counts: PanopticCounts) -> dict:
    """PQ of one image alone: its classes are those that occur in it, in either map.

    Args:
        outcome: outcome of the image.
        counts: empty ones; the image is added.

    Returns:
        ``pq``, ``sq``, ``rq``, 0 to 1, NaN for an image without segments, and ``tp``, ``fp``,
        ``fn``.
    """
    counts.add(outcome.matches)
    _, tp, fp, fn = counts.table.sum(axis=0).tolist()
    return {**counts.results()["All"], "tp": int(tp), "fp": int(fp), "fn": int(fn)}


def describe_segments(
    outcome: ImageOutcome, truth_map: np.ndarray, pred_map: np.ndarray, image: SavedImage
) -> tuple[list[dict], list[dict]]:
    """What to say about each segment of one image.

    Returns:
        Ground truth and prediction: a dict a segment with ``category_id``; ``area`` in pixels;
        ``state``: "match", "confused" (found, under another class), "missed", "false_positive",
        "crowd" (ground truth that is not to be found) or "ignored" (forgiven on void or crowd);
        ``partner``, the number of the segment in the other list that it overlaps best, or None;
        ``iou`` with it; ``score`` of predicted things.
    """
    matches, any_class = outcome.matches, outcome.any_class
    shared = segment_overlaps(pred_map, image.segments, truth_map, image.truth_segments)
    union = matches.gt_areas[:, None] + matches.pred_areas - shared[1:, 1:] - shared[0, 1:]
    iou = shared[1:, 1:] / union
    truth_states = np.where(any_class.missed, "missed", "crowd").astype("<U14")
    pred_states = np.where(outcome.false_positives(), "false_positive", "ignored").astype("<U14")
    for states, index in ((truth_states, any_class.gt_index), (pred_states, any_class.pred_index)):
        states[index] = "confused"
    truth_states[matches.gt_index] = pred_states[matches.pred_index] = "match"
    truth = _described(image.truth_segments, matches.gt_areas, truth_states, iou)
    predicted = _described(image.segments, matches.pred_areas, pred_states, iou.T)
    return truth, predicted


def _described(
    segments: list[dict], areas: np.ndarray, states: np.ndarray, iou: np.ndarray
) -> list[dict]:
    described = []
    for segment, area, state, row in zip(segments, areas, states, iou, strict=True):
        best = int(row.argmax()) if row.any() else None
        described.append(
            {
                "category_id": segment["category_id"],
                "area": int(area),
                "state": str(state),
                "partner": best,
                "iou": 0.0 if best is None else float(row[best]),
                "score": segment.get("score"),
            }
        )
    return described
