"""Scoring predictions on disk: COCO panoptic results, a JSON and a folder of PNGs.

Every image is counted on its own, in any of several processes, and the counts are added up in the
order of the ground truth, so that the numbers do not depend on how many processes there are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from spatialflow.data.categories import Categories
from spatialflow.data.targets import read_panoptic_png
from spatialflow.saved.predictions import ImagePair, PanopticFolder, read_pairs
from spatialflow.utils.parallel import in_parallel
from spatialflow.utils.text import name_some

from .panoptic_quality import PanopticCounts, match_segments

logger = logging.getLogger(__name__)

Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]

_maps: list[np.ndarray | None] = [None, None]
"""The last two maps that this process has read, to be overwritten by the next two."""


@dataclass(frozen=True)
class ImageCounts:
    """What :class:`PanopticCounts` would hold for one image, only where it is not zero.

    Attributes:
        rows: (K,) which categories, as indices.
        values: (K, 4) their counts.
        wrong_areas: number of ground-truth segments whose area in the JSON is wrong.
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
    mapper: Mapper | None = None,
) -> Score:
    """Count matches of predictions on disk with a ground truth in COCO panoptic format.

    An image without prediction counts as one where everything is missed, with a warning
    (``panopticapi`` refuses such results). Predictions of other images are left out, with a
    warning. Areas are counted in the PNGs.

    Args:
        predictions: JSON with ``annotations`` and the folder of PNGs.
        truth: JSON of the dataset and the folder of PNGs.
        categories: categories of the dataset; None: those of its JSON.
        workers: number of processes; with 1, this one does the work.
        progress: show a progress bar.
        mapper: what calls a function with each of many arguments, elsewhere, and gives the results
            in their order; None: ``workers`` processes.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, an image is predicted twice, or a segment does not fit its
            PNG or has an unknown category; the message names file, image and segment.
    """
    paired = read_pairs(predictions, truth, categories)
    classes = paired.categories.as_json()
    score = Score(PanopticCounts(classes), missing=paired.missing, extra=paired.extra)
    _warn(score, predictions.json, truth.json)
    count = partial(_count, counts=PanopticCounts(classes))
    pairs = paired.pairs
    mapper = mapper or partial(in_parallel, workers=workers)
    done = tqdm(mapper(count, pairs), total=len(pairs), unit="image", disable=not progress)
    for image in done:
        score.counts.table[image.rows] += image.values
        score.images.append(image)
    wrong = sum(image.wrong_areas for image in score.images)
    if wrong:
        logger.warning(
            f"{truth.json}: {wrong} areas in the JSON differ from the PNGs, whose pixels are what "
            "counts here; `spatialflow check` names them."
        )
    return score


def _warn(score: Score, results_json: str, truth_json: str) -> None:
    if score.missing:
        logger.warning(
            f"{results_json} has no prediction for {_images(score.missing)} of {truth_json}: "
            "everything in them counts as missed."
        )
    if score.extra:
        logger.warning(
            f"{results_json} has predictions for {_images(score.extra)} that {truth_json} does not "
            "have; they are left out."
        )


def _count(pair: ImagePair, counts: PanopticCounts) -> ImageCounts:
    counts.table[:] = 0
    wrong_areas = 0
    if pair.predicted is None or pair.png is None:
        counts.add_missed([s["category_id"] for s in pair.truth["segments_info"] if _counts(s)])
    else:
        predicted_map = read_panoptic_png(pair.png, _maps[0])
        true_map = read_panoptic_png(pair.truth_png, _maps[1])
        _maps[:] = predicted_map, true_map
        segments = pair.truth["segments_info"]
        try:
            matches = match_segments(
                predicted_map, pair.predicted["segments_info"], true_map, segments
            )
        except ValueError as e:
            raise ValueError(
                f"Image {pair.truth['image_id']!r}, prediction {pair.png}, ground truth "
                f"{pair.truth_png}: {e}. Write PNG and segments_info from the same map."
            ) from e
        counts.add(matches)
        areas = matches.gt_areas.tolist()
        wrong_areas = sum(s.get("area", a) != a for s, a in zip(segments, areas, strict=True))
    rows = np.flatnonzero(counts.table.any(axis=1))
    return ImageCounts(rows, counts.table[rows], wrong_areas)


def _counts(segment: Mapping) -> bool:
    return not segment.get("iscrowd", 0)


def _images(ids: list) -> str:
    return f"{len(ids)} image{'s' * (len(ids) > 1)} ({name_some(map(repr, ids))})"
