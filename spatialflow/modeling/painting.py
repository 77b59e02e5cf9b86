"""What is painted on a panoptic map and how it is read off again: the steps of the merges.

Legend: N instances, H x W pixels, S stuff labels, M the side of a predicted mask.
Everything stays on the device of its inputs. Where the order of the instances matters there is a
loop over their windows for the CPU, which touches the fewest pixels, and :mod:`.batched_painting`
for CUDA, which launches the fewest kernels; both apply one rule and give equal maps.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from detectron2.layers.mask_ops import _do_paste_mask
from torch import Tensor

from . import batched_painting

FREE = 0
"""Value of a pixel that no segment claims; void in the result."""
MASK_THRESH = 0.5
"""The probability from which on a pixel belongs to a mask."""


def paint_instances(masks: Tensor, overlap_thresh: float) -> Tensor:
    """Give each instance the pixels of its mask that no earlier instance has.

    Args:
        masks: (N, H, W) bool, best first.
        overlap_thresh: see :func:`merge_panoptic`.

    Returns:
        (H, W) int32: i + 1 where instance i is, 0 elsewhere.
    """
    keeps = partial(_overlaps_little, overlap_thresh=overlap_thresh)
    paint = batched_painting.paint_instances if masks.is_cuda else _paint_one_by_one
    return paint(masks, keeps)


def _overlaps_little(free: Tensor, area: Tensor, overlap_thresh: float) -> Tensor:
    # An empty mask gives nan, which is not kept.
    return (area - free).double() / area <= overlap_thresh


def _paint_one_by_one(masks: Tensor, keeps: batched_painting.Keeps) -> Tensor:
    panoptic = masks.new_zeros(masks.shape[1:], dtype=torch.int32)
    free = torch.ones_like(panoptic, dtype=torch.bool)
    for i, window in enumerate(_windows(masks)):
        mask, region = masks[i][window], free[window]
        gained = mask & region
        gained &= keeps(torch.count_nonzero(gained), torch.count_nonzero(mask))
        panoptic[window].masked_fill_(gained, i + 1)
        region ^= gained
    return panoptic


def paint_stuff(
    panoptic: Tensor,
    labels: Tensor,
    *,
    first_id: int,
    num_labels: int,
    left_out: Collection[int],
    area_limit: int,
) -> None:
    """Give the free pixels of each stuff label, if they are enough, the id first_id + label.

    Args:
        panoptic: (H, W) int32, changed in place.
        labels: (H, W) int64.
        first_id, num_labels: see above; labels are below ``num_labels``.
        left_out: labels that are not painted.
        area_limit: free pixels that a label needs at least.
    """
    free = panoptic == FREE
    ids = torch.arange(first_id, first_id + num_labels, dtype=torch.int32, device=labels.device)
    ids[list(left_out)] = FREE
    ids[torch.bincount(labels[free], minlength=num_labels) < area_limit] = FREE
    torch.where(free, ids[labels], panoptic, out=panoptic)


def fill_boxes(panoptic: Tensor, boxes: Tensor, min_free: float) -> None:
    """Give each detection the free pixels of its box when they are enough of the box (Sec. IV-B).

    The pixels join the detection's own segment if it has one; otherwise they are its segment.

    Args:
        panoptic: (H, W) int32 with i + 1 where detection i is, changed in place.
        boxes: (N, 4) float, best first; sides are truncated to whole pixels, ends excluded.
        min_free: see :func:`merge_panoptic`.
    """
    keeps = partial(_has_enough, min_free=min_free)
    sides = boxes.clamp(min=0).long()
    if panoptic.is_cuda:
        # What is free gets the pixels, or stays 0.
        panoptic += batched_painting.fill_boxes(panoptic == FREE, sides, keeps)
    else:
        _fill_one_by_one(panoptic, sides, keeps)


def _has_enough(free: Tensor, area: Tensor, min_free: float) -> Tensor:
    return free.double() / area >= min_free


def _fill_one_by_one(panoptic: Tensor, sides: Tensor, keeps: batched_painting.Keeps) -> None:
    for i, (x1, y1, x2, y2) in enumerate(sides.tolist()):
        region = panoptic[y1:y2, x1:x2]
        if region.numel():
            free = region == FREE
            area = torch.tensor(region.numel())
            region.masked_fill_(free & keeps(torch.count_nonzero(free), area), i + 1)


def fill_rims(panoptic: Tensor, masks: Tensor, boxes: Tensor, min_prob: float) -> None:
    """Give each free pixel to the instance on the map whose mask is the most probable there.

    Around a thing neither its mask nor the stuff, whose label there is a thing's, claims a pixel.

    Args:
        panoptic: (H, W) int32 with i + 1 where instance i is, changed in place.
        masks: (N, M, M) probabilities, best first.
        boxes: (N, 4) float.
        min_prob: the probability that a pixel needs, above 0; 0.5 is that of a mask.
    """
    areas = torch.bincount(panoptic.flatten(), minlength=len(masks) + 1)[1 : len(masks) + 1]
    of_segments = masks * (areas > 0)[:, None, None]
    size = (panoptic.shape[0], panoptic.shape[1])
    nearest = paint_most_probable(of_segments, boxes, size, min_prob)
    torch.where(panoptic == FREE, nearest, panoptic, out=panoptic)


def paint_most_probable(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], min_prob: float = MASK_THRESH
) -> Tensor:
    """Give each pixel to the instance whose mask is the most probable there.

    Few masks at a time are brought to the size of the map, on a CPU one.

    Args:
        masks: (n, M, M) probabilities, those of the best instance first: it wins a tie.
        boxes: (n, 4) float, x1 y1 x2 y2 in pixels of the map.
        size: H, W.
        min_prob: the probability that a pixel needs.

    Returns:
        (H, W) int32: i + 1 where instance i is, 0 where no mask is probable enough.
    """
    paint = batched_painting.paint_most_probable if masks.is_cuda else _most_probable_one_by_one
    return paint(masks, boxes, size, min_prob)


def _most_probable_one_by_one(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], min_prob: float
) -> Tensor:
    panoptic = torch.zeros(size, dtype=torch.int32, device=masks.device)
    highest = torch.zeros(size, device=masks.device)
    for i in range(len(masks)):
        (pasted,), window = _do_paste_mask(masks[i, None, None], boxes[i, None], *size)
        gained = (pasted >= min_prob) & (pasted > highest[window])
        highest[window] = torch.where(gained, pasted, highest[window])
        panoptic[window].masked_fill_(gained, i + 1)
    return panoptic


def _windows(masks: Tensor) -> list[tuple[slice, slice]]:
    """The smallest window of rows and columns around each mask, with one wait for the device."""
    sides = []
    pixels = masks.view(torch.uint8)  # a maximum of bytes is ten times as fast as any of bools
    for occupied in (pixels.amax(dim=2), pixels.amax(dim=1)):
        # The first of equal maxima is the first row (column) that has a pixel.
        first = occupied.argmax(dim=1)
        last = occupied.shape[1] - occupied.flip(1).argmax(dim=1)
        sides += [first, last]
    return [
        (slice(top, bottom), slice(left, right))
        for top, bottom, left, right in torch.stack(sides, dim=1).tolist()
    ]


def describe_segments(
    panoptic: Tensor, scores: Tensor, classes: Tensor, num_stuff_labels: int
) -> tuple[Tensor, list[dict]]:
    """Number the segments from 1 without gaps and list them.

    Args:
        panoptic: (H, W) int32 with i + 1 where instance i is, N + 1 + l where stuff label l is,
            and 0 for void.
        scores, classes: (N,) of the instances.
        num_stuff_labels: S.

    Returns:
        As :func:`merge_panoptic`.
    """
    num_things = len(scores)
    areas = torch.bincount(panoptic.flatten(), minlength=1 + num_things + num_stuff_labels).tolist()
    score_of, class_of = scores.tolist(), classes.tolist()
    new_ids = [FREE] * len(areas)
    segments: list[dict] = []
    for old_id, area in enumerate(areas):
        if old_id == FREE or area == 0:
            continue
        new_ids[old_id] = len(segments) + 1
        segment = {"id": new_ids[old_id], "isthing": old_id <= num_things, "area": area}
        if segment["isthing"]:
            segment |= {"category_id": class_of[old_id - 1], "score": score_of[old_id - 1]}
        else:
            segment["category_id"] = old_id - 1 - num_things
        segments.append(segment)
    lookup = torch.tensor(new_ids, dtype=torch.int32, device=panoptic.device)
    return lookup[panoptic.long()], segments
