"""Panoptic quality from id maps: counts of one image, their sum, and the averages.

The rules are those of COCO's ``panopticapi`` (Kirillov et al., "Panoptic Segmentation", Sec. 4),
with one difference: the area of a segment is the number of its pixels in the map, never the
``area`` that a JSON claims.

A *segment list* is a list of dicts as in the panoptic JSON: ``id`` (its value in the map),
``category_id`` and, in ground truth, ``iscrowd``. Id 0 in a map is void. G and P are the numbers of
ground-truth and predicted segments of an image, C the number of categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spatialflow.utils.runs import runs
from spatialflow.utils.text import name_some

VOID = 0
GROUPS: dict[str, bool | None] = {"All": None, "Things": True, "Stuff": False}
"""Name of each average, and which ``isthing`` its categories have (None: any)."""
QUALITIES = ("PQ", "SQ", "RQ")
GROUP_SUFFIXES = dict(zip(GROUPS, ("", "_th", "_st"), strict=True))


@dataclass(frozen=True)
class SegmentMatches:
    """What became of the segments of one image; indices count along the two segment lists.

    Attributes:
        gt_areas, pred_areas: (G,) and (P,) pixels of each segment, counted in the maps.
        gt_categories, pred_categories: (G,) and (P,) dataset category ids.
        gt_index, pred_index, iou: (N,) the true positives: pairs of one category, IoU > 0.5.
        missed: (G,) bool, the false negatives.
        spurious: (P,) bool, the false positives.
    """

    gt_areas: np.ndarray
    pred_areas: np.ndarray
    gt_categories: np.ndarray
    pred_categories: np.ndarray
    gt_index: np.ndarray
    pred_index: np.ndarray
    iou: np.ndarray
    missed: np.ndarray
    spurious: np.ndarray


def overlaps(
    gt_map: np.ndarray, pred_map: np.ndarray, gt_ids: Sequence[int], pred_ids: Sequence[int]
) -> np.ndarray:
    """Count the pixels that each pair of ground-truth and predicted segments shares.

    Args:
        gt_map, pred_map: (H, W) integer id maps of one size.
        gt_ids, pred_ids: the G and P ids that occur in them besides void.

    Returns:
        (G + 1, P + 1) int64 pixel counts; row and column 0 are void, the rest as in the lists.

    Raises:
        ValueError: the sizes differ, an id is 0 or listed twice, or a map has an unlisted id.
    """
    if gt_map.shape != pred_map.shape:
        raise ValueError(f"the prediction is {_size(pred_map)}, the ground truth {_size(gt_map)}")
    starts, lengths = runs(gt_map, pred_map)
    rows = _positions(gt_map.ravel()[starts], gt_ids, "ground truth")
    columns = _positions(pred_map.ravel()[starts], pred_ids, "prediction")
    shape = (len(gt_ids) + 1, len(pred_ids) + 1)
    cells = np.bincount(rows * shape[1] + columns, weights=lengths, minlength=shape[0] * shape[1])
    return cells.astype(np.int64).reshape(shape)


def match_segments(
    pred_map: np.ndarray,
    pred_segments: Sequence[Mapping],
    gt_map: np.ndarray,
    gt_segments: Sequence[Mapping],
) -> SegmentMatches:
    """Match predicted with ground-truth segments of one image, as ``panopticapi`` does.

    A pair matches when its categories agree and its IoU, with void left out of the union, exceeds
    0.5. Crowd regions match nothing and are never missed. A predicted segment without a match is
    forgiven when more than half of it lies on void and its category's crowd region (of several
    in one image, the last one listed).

    Args:
        pred_map, gt_map: (H, W) integer id maps of one size.
        pred_segments, gt_segments: their segment lists.

    Raises:
        ValueError: a map and its list do not fit: sizes, ids on one side only, ids listed twice.
    """
    return match_overlaps(
        segment_overlaps(pred_map, pred_segments, gt_map, gt_segments), pred_segments, gt_segments
    )


def segment_overlaps(
    pred_map: np.ndarray,
    pred_segments: Sequence[Mapping],
    gt_map: np.ndarray,
    gt_segments: Sequence[Mapping],
) -> np.ndarray:
    """:func:`overlaps` of two maps with segment lists, arguments as for :func:`match_segments`."""
    ids = ([s["id"] for s in segments] for segments in (gt_segments, pred_segments))
    return overlaps(gt_map, pred_map, *ids)


def match_overlaps(
    shared: np.ndarray, pred_segments: Sequence[Mapping], gt_segments: Sequence[Mapping]
) -> SegmentMatches:
    """:func:`match_segments`, where the overlaps are known.

    Args:
        shared: (G + 1, P + 1) pixel counts, see :func:`overlaps`.
        pred_segments, gt_segments: the segment lists.

    Raises:
        ValueError: a segment has no pixel.
    """
    gt_ids, pred_ids = [s["id"] for s in gt_segments], [s["id"] for s in pred_segments]
    gt_areas, pred_areas = shared.sum(axis=1)[1:], shared.sum(axis=0)[1:]
    _require_pixels(gt_areas, gt_ids, "ground truth")
    _require_pixels(pred_areas, pred_ids, "prediction")
    gt_categories = np.array([s["category_id"] for s in gt_segments], dtype=np.int64)
    pred_categories = np.array([s["category_id"] for s in pred_segments], dtype=np.int64)
    crowd = np.array([bool(s.get("iscrowd", 0)) for s in gt_segments], dtype=bool)

    on_void, inside = shared[0, 1:], shared[1:, 1:]
    iou = inside / (gt_areas[:, None] + pred_areas - inside - on_void)
    same_category = gt_categories[:, None] == pred_categories
    gt_index, pred_index = np.nonzero((iou > 0.5) & same_category & ~crowd[:, None])

    missed, spurious = ~crowd, np.ones(len(pred_ids), dtype=bool)
    missed[gt_index] = False
    last_crowd = {gt_categories[i]: inside[i] for i in np.flatnonzero(crowd)}
    nowhere = np.zeros(len(pred_ids), dtype=np.int64)
    on_crowd = [last_crowd.get(c, nowhere)[i] for i, c in enumerate(pred_categories)]
    spurious[(on_void + on_crowd) / pred_areas > 0.5] = False
    spurious[pred_index] = False
    return SegmentMatches(
        gt_areas=gt_areas,
        pred_areas=pred_areas,
        gt_categories=gt_categories,
        pred_categories=pred_categories,
        gt_index=gt_index,
        pred_index=pred_index,
        iou=iou[gt_index, pred_index],
        missed=missed,
        spurious=spurious,
    )


def of_one_class(segments: Iterable[Mapping]) -> list[dict]:
    """A segment list with one category for all, to match segments whatever their class is."""
    return [{**s, "category_id": 0} for s in segments]


class PanopticCounts:
    """Sums per category over images; its size does not depend on their number.

    ``table`` is a (C, 4) float64 array in the order of ``categories``: the sum of the true
    positives' IoU, and the numbers of true positives, false positives and false negatives. The
    counts of several processes, or of several parts of a dataset, are merged with ``+=``.
    """

    def __init__(self, categories: Iterable[Mapping]):
        """
        Args:
            categories: dicts with ``id``, ``name`` and ``isthing`` (0 or 1), as in the JSON.
        """
        self.categories = list(categories)
        self.table = np.zeros((len(self.categories), 4))
        self._rows = {category["id"]: row for row, category in enumerate(self.categories)}

    def add(self, matches: SegmentMatches) -> None:
        """Add one image.

        Raises:
            ValueError: a segment's category is not among ``categories``; nothing is added.
        """
        gt_rows = self._rows_of(matches.gt_categories, "ground truth")
        pred_rows = self._rows_of(matches.pred_categories, "prediction")
        matched = gt_rows[matches.gt_index]
        np.add.at(self.table[:, 0], matched, matches.iou)
        np.add.at(self.table[:, 1], matched, 1)
        np.add.at(self.table[:, 2], pred_rows[matches.spurious], 1)
        np.add.at(self.table[:, 3], gt_rows[matches.missed], 1)

    def add_missed(self, category_ids: Sequence[int]) -> None:
        """Add an image without prediction, of which these segments (no crowds) are missed."""
        rows = self._rows_of(np.array(category_ids, dtype=np.int64), "ground truth")
        np.add.at(self.table[:, 3], rows, 1)

    def __iadd__(self, other: PanopticCounts) -> PanopticCounts:
        if self.categories != other.categories:
            raise ValueError("Counts over different categories cannot be added.")
        self.table += other.table
        return self

    def results(self) -> dict:
        """Averages over the categories that occur, and the figures of each category.

        Returns:
            ``{"All" | "Things" | "Stuff": {"pq", "sq", "rq", "n"}, "per_class": {category id:
            {"pq", "sq", "rq", "tp", "fp", "fn"}}}``, qualities from 0 to 1, like ``panopticapi``'s
            ``pq_compute``. ``n`` is the number of categories averaged: those with a segment in
            the ground truth or a false positive. Where it is 0 the three averages are NaN (not
            measured). A category that does not occur has 0 throughout.
        """
        qualities, _ = class_qualities(self.table)
        results: dict = {
            name: dict(zip(("pq", "sq", "rq"), mean.tolist(), strict=True)) | {"n": int(n)}
            for name, (mean, n) in group_averages(self.table, self.categories).items()
        }
        results["per_class"] = {
            category["id"]: dict(zip(("pq", "sq", "rq"), quality, strict=True))
            | {"tp": int(row[1]), "fp": int(row[2]), "fn": int(row[3])}
            for category, quality, row in zip(
                self.categories, qualities.tolist(), self.table, strict=True
            )
        }
        return results

    def metrics(self) -> dict[str, float]:
        """What :meth:`results` has, in percent, as Detectron2 names it.

        Returns:
            PQ, SQ, RQ (all), PQ_th ... (things), PQ_st ... (stuff) and PQ-<class>; NaN where no
            class occurs, that is, where there is nothing to measure.
        """
        metrics = {
            f"{key}{GROUP_SUFFIXES[group]}": value
            for group, (mean, _) in group_averages(self.table, self.categories).items()
            for key, value in zip(QUALITIES, (100 * mean).tolist(), strict=True)
        }
        qualities, occurs = class_qualities(self.table)
        pq = np.where(occurs, 100 * qualities[:, 0], np.nan).tolist()
        for category, value in zip(self.categories, pq, strict=True):
            metrics[f"PQ-{category['name']}"] = value
        return metrics

    def _rows_of(self, category_ids: np.ndarray, side: str) -> np.ndarray:
        unknown = sorted(set(category_ids.tolist()) - self._rows.keys())
        if unknown:
            raise ValueError(f"the {side} has category ids that the dataset lacks: {unknown}")
        return np.array([self._rows[i] for i in category_ids.tolist()], dtype=np.int64)


def class_qualities(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PQ, SQ and RQ of each category, from 0 to 1.

    Args:
        table: (..., C, 4) counts as in :class:`PanopticCounts`.

    Returns:
        (..., C, 3) qualities, 0 for a category that does not occur; (..., C) bool, which occur.
    """
    iou, tp, fp, fn = np.moveaxis(table, -1, 0)
    total = tp + 0.5 * fp + 0.5 * fn
    occurs = total > 0
    qualities = np.zeros((*occurs.shape, 3))
    np.divide(iou, total, out=qualities[..., 0], where=occurs)
    np.divide(iou, tp, out=qualities[..., 1], where=tp > 0)
    np.divide(tp, total, out=qualities[..., 2], where=occurs)
    return qualities, occurs


def group_averages(
    table: np.ndarray, categories: Sequence[Mapping]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """PQ, SQ and RQ averaged over the categories that occur, by name of the group.

    Args:
        table: (..., C, 4) counts as in :class:`PanopticCounts`.
        categories: the C categories, with ``isthing``.

    Returns:
        By group (..., 3) averages from 0 to 1, NaN where no category of it occurs, and (...) the
        number of categories averaged.
    """
    qualities, occurs = class_qualities(table)
    isthing = np.array([bool(c["isthing"]) for c in categories], dtype=bool)
    averages = {}
    for name, group in GROUPS.items():
        chosen = occurs & (True if group is None else isthing == group)
        n = chosen.sum(axis=-1)
        sums = (qualities * chosen[..., None]).sum(axis=-2)
        with np.errstate(invalid="ignore"):
            averages[name] = sums / n[..., None], n
    return averages


def _positions(values: np.ndarray, ids: Sequence[int], side: str) -> np.ndarray:
    """Where each value stands in ``[VOID, *ids]``."""
    known = np.array([VOID, *ids], dtype=np.int64)
    order = np.argsort(known)
    twice = known[order][1:][np.diff(known[order]) == 0]
    if len(twice):
        raise ValueError(f"segment ids of the {side} are 0 or listed twice: {twice.tolist()}")
    places = np.searchsorted(known, values, sorter=order)
    found = order[np.minimum(places, len(ids))]
    unlisted = np.unique(values[known[found] != values])
    if len(unlisted):
        raise ValueError(
            f"the map of the {side} has ids that its segment list lacks: [{name_some(unlisted)}]"
        )
    return found


def _require_pixels(areas: np.ndarray, ids: Sequence[int], side: str) -> None:
    if not areas.all():
        empty = np.array(ids)[areas == 0]
        raise ValueError(f"segments of the {side} have no pixel in its map: [{name_some(empty)}]")


def _size(id_map: np.ndarray) -> str:
    return "x".join(str(n) for n in reversed(id_map.shape))
