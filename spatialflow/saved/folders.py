"""Scoring predictions on disk: COCO panoptic results, a JSON and a folder of PNGs.

Every image is counted on its own, in any of several processes, and the counts are added up in the
order of the ground truth, so that the numbers do not depend on how many processes there are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from spatialflow.data.categories import Categories
from spatialflow.data.coco_panoptic import read_panoptic_json
from spatialflow.data.targets import read_panoptic_png
from spatialflow.evaluation.panoptic_quality import PanopticCounts, match_segments
from spatialflow.utils.parallel import in_parallel

from .results_file import check_segments, read_panoptic_results

logger = logging.getLogger(__name__)

_maps: list[np.ndarray | None] = [None, None]
"""The last two maps that this process has read, to be overwritten by the next two."""


@dataclass(frozen=True)
class PanopticFolder:
    """A panoptic JSON and the folder of its PNGs; by default the JSON's name without ".json"."""

    json: str
    root: str = ""

    def __post_init__(self) -> None:
        if not self.root:
            object.__setattr__(self, "root", os.path.splitext(self.json)[0])
        if not os.path.isdir(self.root):
            raise FileNotFoundError(
                f"Folder {self.root} with the PNGs of {self.json} is not there."
            )


@dataclass(frozen=True)
class ImagePair:
    """Ground truth and prediction of an image; ``predicted`` is None where there is none."""

    truth: dict
    predicted: dict | None


@dataclass(frozen=True)
class ImageCounts:
    """What :class:`PanopticCounts` would hold for one image, only where it is not zero.

    Attributes:
        rows: (K,) which categories, as indices.
        values: (K, 4) their counts.
        wrong_areas: of ground-truth segments in the JSON; how many.
    """

    rows: np.ndarray
    values: np.ndarray
    wrong_areas: int = 0


@dataclass
class Score:
    """What was counted.

    Attributes:
        counts: sums over all images of the ground truth.
        images: the same image by image, in the order of the ground truth.
        missing: ids of the images without prediction; their segments count as missed.
        extra: ids of the images that are predicted and not annotated; they do not count.
    """

    counts: PanopticCounts
    images: list[ImageCounts] = field(default_factory=list)
    missing: list[Any] = field(default_factory=list)
    extra: list[Any] = field(default_factory=list)


def score_folder(
    predictions: PanopticFolder,
    truth: PanopticFolder,
    categories: Categories | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Score:
    """Count matches of predictions on disk with a ground truth in COCO panoptic format.

    An image without prediction counts as one where everything is missed, with a warning
    (``panopticapi`` refuses such results). Predictions of other images are left out, with a
    warning. Areas are counted in the PNGs.

    Args:
        predictions: JSON with ``annotations`` and the folder of PNGs.
        truth: JSON of the dataset and the folder of PNGs.
        categories: of the dataset; None: those of its JSON.
        workers: processes; 1 is this one.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged, an image is predicted twice, or a segment does not fit its
            PNG or has an unknown category; the message names file, image and segment.
    """
    content = read_panoptic_json(truth.json)
    if categories is None:
        try:
            categories = Categories.from_json(content["categories"])
        except ValueError as e:
            raise ValueError(f"{truth.json}: {e}") from e
    score = Score(PanopticCounts(categories.as_json()))
    pairs = _pairs(content["annotations"], read_panoptic_results(predictions.json), score)
    known = frozenset(c["id"] for c in score.counts.categories)
    for pair in pairs:  # before the first PNG is read: it is the mistake of a whole file
        check_segments(truth.json, pair.truth, known)
        if pair.predicted:
            check_segments(predictions.json, pair.predicted, known)
    _warn(score, predictions.json, truth.json)
    count = partial(
        _count, counts=PanopticCounts(score.counts.categories), truth=truth, predictions=predictions
    )
    done = tqdm(
        in_parallel(count, pairs, workers), total=len(pairs), unit="image", disable=not progress
    )
    for image in done:
        score.counts.table[image.rows] += image.values
        score.images.append(image)
    wrong = sum(image.wrong_areas for image in score.images)
    if wrong:
        logger.warning(
            f"{truth.json}: {wrong} areas in the JSON differ from the PNGs, whose pixels are what "
            "counts here; python -m spatialflow.tools.check names them."
        )
    return score


def _pairs(annotations: list[dict], results: list[dict], score: Score) -> list[ImagePair]:
    predicted = {r["image_id"]: r for r in results}
    pairs = [ImagePair(a, predicted.pop(a["image_id"], None)) for a in annotations]
    score.missing = [p.truth["image_id"] for p in pairs if p.predicted is None]
    score.extra = list(predicted)
    return pairs


def _warn(score: Score, results_json: str, truth_json: str) -> None:
    if score.missing:
        logger.warning(
            f"{results_json} has no prediction for {_some(score.missing)} of {truth_json}: "
            "everything in them counts as missed."
        )
    if score.extra:
        logger.warning(
            f"{results_json} has predictions for {_some(score.extra)} that {truth_json} does not "
            "have; they are left out."
        )


def _count(
    pair: ImagePair, counts: PanopticCounts, truth: PanopticFolder, predictions: PanopticFolder
) -> ImageCounts:
    counts.table[:] = 0
    wrong_areas = 0
    if pair.predicted is None:
        counts.add_missed([s["category_id"] for s in pair.truth["segments_info"] if _counts(s)])
    else:
        paths = [
            os.path.join(folder.root, entry["file_name"])
            for folder, entry in ((predictions, pair.predicted), (truth, pair.truth))
        ]
        predicted_map, true_map = _maps[:] = [
            read_panoptic_png(path, out) for path, out in zip(paths, _maps, strict=True)
        ]
        segments = pair.truth["segments_info"]
        try:
            matches = match_segments(
                predicted_map, pair.predicted["segments_info"], true_map, segments
            )
        except ValueError as e:
            raise ValueError(
                f"Image {pair.truth['image_id']!r}, prediction {paths[0]}, ground truth "
                f"{paths[1]}: {e}. Write PNG and segments_info from the same map."
            ) from e
        counts.add(matches)
        areas = matches.gt_areas.tolist()
        wrong_areas = sum(s.get("area", a) != a for s, a in zip(segments, areas, strict=True))
    rows = np.flatnonzero(counts.table.any(axis=1))
    return ImageCounts(rows, counts.table[rows], wrong_areas)


def _counts(segment: Mapping) -> bool:
    return not segment.get("iscrowd", 0)


def _some(ids: list, limit: int = 5) -> str:
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return f"{len(ids)} image{'s' * (len(ids) > 1)} ({', '.join(map(repr, ids[:limit]))}{more})"
