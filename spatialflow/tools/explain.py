"""``spatialflow explain``: where panoptic quality is lost.

For each class PQ = sum of IoU / (TP + FP / 2 + FN / 2). Four mistakes are put right:

    classes          a prediction that meets a segment of another class (IoU > 0.5) gets that class
    false positives  those that are left are taken away
    missed           the same for the segments that nothing meets
    masks            the IoU of every true positive is 1

*alone* is what PQ would be if only this were right. *in turn* puts them right one after the other,
in this order, each on top of those before; it ends at 100, so its gains add up to what PQ lacks. A
class of which nothing is left to get wrong has 100 in these; the average is always over the classes
that occur in the evaluation.

With raw outputs there is also the *best merge*: PQ of the same instances and stuff labels, when the
ground truth says what to keep. Each thing has the instance of its class with the largest IoU, if
that exceeds 0.5; where such instances overlap, a pixel goes to the instance whose matched thing
contains it, otherwise to the one with the larger IoU. Each stuff segment has the pixels with its
label that are left, if their IoU with it exceeds 0.5. Everything else is void, so there are no
false positives.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from tqdm import tqdm

from spatialflow.data.categories import Categories
from spatialflow.data.targets import index_map, read_panoptic_png
from spatialflow.evaluation.panoptic_quality import (
    GROUPS,
    PanopticCounts,
    SegmentMatches,
    class_qualities,
    match_overlaps,
    match_segments,
    of_one_class,
    segment_overlaps,
)
from spatialflow.saved.predictions import ImagePair, PanopticFolder, read_pairs
from spatialflow.saved.raw_outputs import INDEX, RawOutputs
from spatialflow.utils.command_parser import CommandParser, add_import_argument
from spatialflow.utils.parallel import in_parallel
from spatialflow.utils.text import table

from .score import add_input_arguments, ground_truth_of, predictions_of, refuse_overwriting_inputs

MISTAKES = ("classes", "false positives", "missed", "masks")


def explain(
    predictions: PanopticFolder,
    truth: PanopticFolder,
    categories: Categories | None = None,
    raw: RawOutputs | None = None,
    workers: int = 1,
    progress: bool = False,
) -> dict:
    """Put each kind of mistake right and say what PQ would be; see the module's docstring.

    Images without prediction count as in :func:`spatialflow.evaluation.scoring.score_folder`.

    Args:
        predictions: results JSON and PNGs.
        truth: JSON of the dataset and PNGs.
        categories: categories of the dataset; None: those of its JSON.
        raw: raw outputs that the predictions were merged from.
        workers: processes; 1 is this one.
        progress: show a progress bar.

    Returns:
        ``{"All" | "Things" | "Stuff": {"PQ", "alone": {mistake: PQ}, "in turn": {mistake: PQ},
        "best merge": PQ, with raw outputs}}``, in percent.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or an image has a prediction
            and no raw output.
    """
    paired = read_pairs(predictions, truth, categories)
    classes = paired.categories.as_json()
    predicted = [p.truth["image_id"] for p in paired.pairs if p.predicted] + paired.extra
    lost = [] if raw is None else [i for i in predicted if i not in raw.files]
    if raw is not None and lost:
        raise ValueError(f"{raw.folder} has no raw output of image {lost[0]!r}.")
    one = partial(_explain_image, raw=raw, categories=classes)
    tables = tqdm(
        in_parallel(one, paired.pairs, workers),
        total=len(paired.pairs),
        unit="image",
        disable=not progress,
    )
    actual, right_classes, best = sum(tables)
    isthing = np.array([bool(c["isthing"]) for c in classes])
    occurs = actual[:, 1:].any(axis=1)
    report = {}
    for group, wanted in GROUPS.items():
        rows = occurs & (True if wanted is None else isthing == wanted)
        report[group] = _qualities(actual[rows], right_classes[rows])
        if raw is not None:
            report[group]["best merge"] = _pq(best[rows])
    return report


def _qualities(actual: np.ndarray, right_classes: np.ndarray) -> dict:
    """PQ of some classes with mistakes put right; see PanopticCounts for the tables' columns."""
    no_fp, no_fn = np.array([1, 1, 0, 1]), np.array([1, 1, 1, 0])
    alone = (right_classes, actual * no_fp, actual * no_fn, _perfect_masks(actual))
    no_mistake = right_classes * no_fp * no_fn
    in_turn = (right_classes, right_classes * no_fp, no_mistake, _perfect_masks(no_mistake))
    return {
        "PQ": _pq(actual),
        "alone": dict(zip(MISTAKES, map(_pq, alone), strict=True)),
        "in turn": dict(zip(MISTAKES, map(_pq, in_turn), strict=True)),
    }


def _perfect_masks(table: np.ndarray) -> np.ndarray:
    return table[:, [1, 1, 2, 3]]


def _pq(table: np.ndarray) -> float:
    """In percent; 100 for a class without any segment, NaN without classes."""
    if not len(table):
        return float("nan")
    qualities, occurs = class_qualities(table)
    return 100 * float(np.where(occurs, qualities[:, 0], 1).mean())


def _explain_image(pair: ImagePair, raw: RawOutputs | None, categories: list[dict]) -> np.ndarray:
    """(3, C, 4) counts: as predicted, with right classes, of the best merge (0 without)."""
    truth, segments = read_panoptic_png(pair.truth_png), pair.truth["segments_info"]
    if pair.predicted is None or pair.png is None:
        missed = match_segments(np.zeros_like(truth), [], truth, segments)
        return np.stack([_table(missed, categories)] * 3)
    id_map, predicted = read_panoptic_png(pair.png), pair.predicted["segments_info"]
    try:
        shared = segment_overlaps(id_map, predicted, truth, segments)
        relabelled = with_right_classes(shared, predicted, segments)
        tables = [
            _table(match_overlaps(shared, p, segments), categories) for p in (predicted, relabelled)
        ]
    except ValueError as e:
        raise ValueError(f"{pair.png} against {pair.truth_png}: {e}.") from e
    if raw is None:
        return np.stack([*tables, np.zeros_like(tables[0])])
    instances, labels = raw.load(pair.predicted["image_id"])
    best_labels = labels.reshape(-1, *truth.shape)[0].numpy()  # what else a merge needs follows
    best = best_merge(
        instances.pred_masks.numpy(),
        np.array(raw.thing_ids)[instances.pred_classes.numpy()],
        np.array(raw.stuff_ids)[best_labels],
        index_map(truth, segments, pair.truth_png),
        segments,
        frozenset(raw.thing_ids),
    )
    kept = [s for s in segments if s["id"] in np.unique(best)]
    matches = match_segments(best, kept, truth, segments)
    best_table = _table(replace(matches, spurious=np.zeros_like(matches.spurious)), categories)
    return np.stack([*tables, best_table])


def with_right_classes(
    shared: np.ndarray, predicted: Sequence[dict], segments: Sequence[dict]
) -> list[dict]:
    """The predicted segments, those that meet a segment of another class with its class.

    Args:
        shared: see :func:`match_overlaps`.
        predicted, segments: the segment lists of prediction and ground truth.
    """
    met = match_overlaps(shared, of_one_class(predicted), of_one_class(segments))
    relabelled = list(predicted)
    for g, p in zip(met.gt_index, met.pred_index, strict=True):
        relabelled[p] = {**predicted[p], "category_id": segments[g]["category_id"]}
    return relabelled


def best_merge(
    masks: np.ndarray,
    classes: np.ndarray,
    stuff: np.ndarray,
    index: np.ndarray,
    segments: Sequence[dict],
    thing_ids: frozenset[int],
) -> np.ndarray:
    """The map that the module's docstring calls the best merge.

    Args:
        masks: (N, H, W) bool, of the instances.
        classes: (N,) their category ids.
        stuff: (H, W) category id of the stuff labels.
        index: (H, W) index map of the ground truth, 0 for void and i + 1 for segment i.
        segments: segments of the ground truth.
        thing_ids: category ids of things.

    Returns:
        (H, W) int32: a predicted segment has the id of the ground truth's that it stands for.
    """
    areas = np.bincount(index.ravel(), minlength=len(segments) + 1)
    shared = np.array([np.bincount(index[m], minlength=len(areas)) for m in masks])
    chosen = []
    for i, segment in enumerate(segments, start=1):
        candidates = np.flatnonzero(classes == segment["category_id"])
        if segment["category_id"] not in thing_ids or segment.get("iscrowd") or not len(candidates):
            continue
        ious = [_iou(shared[n], areas, i) for n in candidates]
        if max(ious) > 0.5:
            chosen.append((max(ious), candidates[int(np.argmax(ious))], i))
    result = np.zeros(index.shape, np.int32)
    for _, n, i in sorted(chosen):
        result[masks[n]] = segments[i - 1]["id"]
    for _, n, i in chosen:
        result[masks[n] & (index == i)] = segments[i - 1]["id"]
    free = result == 0
    for i, segment in enumerate(segments, start=1):
        if segment["category_id"] in thing_ids or segment.get("iscrowd"):
            continue
        region = free & (stuff == segment["category_id"])
        if _iou(np.bincount(index[region], minlength=len(areas)), areas, i) > 0.5:
            result[region] = segment["id"]
    return result


def _iou(shared: np.ndarray, areas: np.ndarray, i: int) -> float:
    """Of a region with entry i of an index map, void left out of the union.

    Args:
        shared: pixels that the region has of each entry.
        areas: pixels of each entry.
    """
    return shared[i] / (shared[1:].sum() + areas[i] - shared[i])


def _table(matches: SegmentMatches, categories: list[dict]) -> np.ndarray:
    counts = PanopticCounts(categories)
    counts.add(matches)
    return counts.table


def run(args: argparse.Namespace) -> None:
    """Explain, print, and write what the arguments ask for."""
    _, truth, categories = ground_truth_of(args)
    raw_index = os.path.join(args.predictions, INDEX)
    refuse_overwriting_inputs(args, truth, [args.json_out], [raw_index])
    has_raw = os.path.isfile(raw_index)
    raw = RawOutputs.open(args.predictions) if has_raw else None
    report = explain(predictions_of(args), truth, categories, raw, args.workers, progress=True)
    print(as_text(report))
    if args.json_out:
        with open(args.json_out, "w") as f:
            json.dump(report, f, indent=2)


def as_text(report: dict) -> str:
    """What :func:`explain` returned, as a table for a terminal."""
    lines = {"PQ": [r["PQ"] for r in report.values()]}
    for kind in ("alone", "in turn"):
        for mistake in MISTAKES:
            lines[f"{mistake} right, {kind}"] = [r[kind][mistake] for r in report.values()]
    if all("best merge" in r for r in report.values()):
        lines["best merge"] = [r["best merge"] for r in report.values()]
    rows = [[name, *(f"{v:.2f}" for v in values)] for name, values in lines.items()]
    return table(rows, ["PQ with", *report])


EXAMPLES = """
# what an evaluation with TEST.SAVE_RAW_OUTPUTS and TEST.SAVE_PREDICTIONS wrote
%(prog)s output/inference/coco_2017_val_panoptic
# results of any model in COCO's panoptic format
%(prog)s pred.json --json gt.json
"""


def parser() -> CommandParser:
    """Which predictions, which ground truth, and what to write."""
    parser = CommandParser(
        prog="spatialflow explain",
        examples=EXAMPLES,
        description="What PQ would be if one kind of mistake were right, from predictions on "
        "disk; in the folder of an evaluation with TEST.SAVE_RAW_OUTPUTS True also what the best "
        "merge would have given.",
    )
    add_import_argument(parser)
    add_input_arguments(parser)
    parser.add_argument("--json-out", metavar="FILE", help="write the report as JSON")
    return parser
