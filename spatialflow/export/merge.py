"""The merge and the box fill of :mod:`spatialflow.modeling.panoptic` as a graph.

Loops run over the confident detections, however many there are. Legend: K rows of detections,
S stuff labels, H x W pixels; ids are 0 for free, i + 1 for detection i, K + 1 + l for label l.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from .detections import Detections
from .regions import paste

SETTINGS = ("score_thresh", "overlap_thresh", "stuff_area_limit", "box_fill_min_free")
"""Thresholds of :class:`spatialflow.modeling.panoptic.HeuristicMerge` in the order in which a graph
takes them, the last where boxes are filled."""


class Panoptic(NamedTuple):
    """The panoptic map and its segments.

    Attributes:
        map: (H, W) int32, 0 for void, segments from 1 on without gaps.
        segment_ids: (K + S,) int32: the id of each detection, then of each label; 0: not there.
        segment_areas: (K + S,) int32 in pixels.
    """

    map: Tensor
    segment_ids: Tensor
    segment_areas: Tensor


class Grid(NamedTuple):
    """The ``rows`` (H,) and ``columns`` (W,) of the map, float, counted from 0."""

    rows: Tensor
    columns: Tensor

    def between(self, low: Tensor, high: Tensor) -> Tensor:
        """(H, W) bool: pixels with y of ``low`` (y, x) and below ``high`` in both directions."""
        rows = (self.rows >= low[0]) & (self.rows < high[0])
        columns = (self.columns >= low[1]) & (self.columns < high[1])
        return rows[:, None] & columns[None]


def merge(
    found: Detections,
    masks: Tensor,
    labels: Tensor,
    num_labels: int,
    settings: Tensor,
    grid: Grid,
    left_out: Collection[int],
    fills_boxes: bool,
) -> Panoptic:
    """Things in their order, stuff where it is free, boxes where they are free enough.

    Args:
        found: detections, best first.
        masks: (K, M, M) probabilities.
        labels: (H, W) int64 stuff labels.
        num_labels: S.
        settings: (3,) or (4,) float, see :data:`SETTINGS`.
        grid: rows and columns of the map.
        left_out: stuff labels that are not painted.
        fills_boxes: whether boxes are filled.
    """
    count = (found.scores >= settings[0]).sum()
    panoptic = _paint_things(found, masks, count, settings[1], grid)
    panoptic = _paint_stuff(panoptic, labels, num_labels, len(masks), left_out, settings[2])
    if fills_boxes:
        panoptic = _fill_boxes(panoptic, found, count, settings[3], grid)
    return _number_segments(panoptic, len(masks) + num_labels)


def _paint_things(
    found: Detections, masks: Tensor, count: Tensor, overlap_thresh: Tensor, grid: Grid
) -> Tensor:
    boxes, exist = found.boxes, found.exist()
    empty = torch.zeros(grid.rows.shape[0], grid.columns.shape[0], dtype=torch.int32)

    def unfinished(i: Tensor, panoptic: Tensor) -> Tensor:
        return i < count

    def paint(i: Tensor, panoptic: Tensor) -> tuple[Tensor, Tensor]:
        at = i.reshape(1)
        box, mask = boxes.index_select(0, at)[0], masks.index_select(0, at)[0]
        pixels = paste(mask, box, grid.rows, grid.columns)
        gained = pixels & (panoptic == 0)
        area, left = pixels.sum(), gained.sum()
        lost = (area - left).double() / area.clamp(min=1).double()
        stays = exist.index_select(0, at)[0] & (lost <= overlap_thresh)
        return i + 1, torch.where(gained & stays, (i + 1).to(torch.int32), panoptic)

    _, panoptic = while_loop(unfinished, paint, (torch.zeros((), dtype=torch.int64), empty))
    return panoptic


def _paint_stuff(
    panoptic: Tensor,
    labels: Tensor,
    num_labels: int,
    num_things: int,
    left_out: Collection[int],
    area_limit: Tensor,
) -> Tensor:
    free = panoptic == 0
    areas = _count(labels, num_labels, free)
    ids = torch.arange(num_things + 1, num_things + 1 + num_labels, dtype=torch.int32)
    ids[list(left_out)] = 0
    ids = torch.where(areas < area_limit, torch.zeros_like(ids), ids)
    return torch.where(free, ids[labels], panoptic)


def _fill_boxes(
    panoptic: Tensor, found: Detections, count: Tensor, min_free: Tensor, grid: Grid
) -> Tensor:
    ends = torch.stack([_length(grid.rows), _length(grid.columns)] * 2)
    # y1 x1 y2 x2 in whole pixels of the map
    boxes = torch.minimum(found.boxes[:, [1, 0, 3, 2]].clamp(min=0).floor(), ends)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    areas, exist = sides[:, 0] * sides[:, 1], found.exist()

    def unfinished(i: Tensor, panoptic: Tensor) -> Tensor:
        return i < count

    def fill(i: Tensor, panoptic: Tensor) -> tuple[Tensor, Tensor]:
        at = i.reshape(1)
        box, area = boxes.index_select(0, at)[0], areas.index_select(0, at)[0]
        free = grid.between(box[:2], box[2:]) & (panoptic == 0)
        share = free.sum().double() / area.clamp(min=1).double()
        fits = exist.index_select(0, at)[0] & (share >= min_free) & (area > 0)
        return i + 1, torch.where(free & fits, (i + 1).to(torch.int32), panoptic)

    _, panoptic = while_loop(unfinished, fill, (torch.zeros((), dtype=torch.int64), panoptic))
    return panoptic


def _number_segments(panoptic: Tensor, num_ids: int) -> Panoptic:
    areas = _count(panoptic, num_ids + 1, panoptic > 0)[1:]
    there = areas > 0
    ids = (there.to(torch.int64).cumsum(0) * there).to(torch.int32)
    lookup = torch.cat([ids.new_zeros(1), ids])
    return Panoptic(lookup[panoptic.long()], ids, areas.to(torch.int32))


def _count(values: Tensor, bins: int, where: Tensor) -> Tensor:
    """(bins,) int64: how often each value is among those of (H, W) that are taken."""
    taken = where.flatten().to(torch.int64)
    return torch.zeros(bins, dtype=torch.int64).scatter_add(0, values.flatten().long(), taken)


def _length(values: Tensor) -> Tensor:
    return torch.scalar_tensor(values.shape[0], dtype=torch.float32)
