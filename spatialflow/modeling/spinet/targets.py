"""Which locations of the pyramid belong to which thing (Sec. 5.2).

Legend: G things, K thing classes, L locations of all levels, H x W the padded input in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..focal_loss import IGNORED

UNMATCHED = -1


class ImageTargets(NamedTuple):
    """The ground truth of an image in the padded size of its batch.

    Attributes:
        masks: (G, H, W) bool, masks of the things.
        classes: (G,) int64.
        stuff: (H, W) int64 stuff labels; the head's ignored value at ignored pixels.
        ignored: (H, W) bool: void, crowds and padding, which no loss sees.
    """

    masks: Tensor
    classes: Tensor
    stuff: Tensor
    ignored: Tensor


class Assignment(NamedTuple):
    """Of an image, by location.

    Attributes:
        labels: (L,) int64: thing class, K for background, -1 for ignored.
        things: (L,) int64: index of the thing, -1 for none.
    """

    labels: Tensor
    things: Tensor


@torch.no_grad()
def assign_locations(
    image: ImageTargets,
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int],
    num_classes: int,
    level_ranges: Sequence[tuple[float, float]] = (),
) -> Assignment:
    """Give each location the thing whose mask, at the size of its level, is there.

    "If a point resides in an overlap of masks, an instance of smaller size is chosen." A thing that
    vanishes on all levels gets the location of the first level that is nearest to its centre, which
    is a reading, as are level ranges.

    Args:
        image: the ground truth.
        grids, strides: (rows, columns) and pixels a cell of each level.
        num_classes: K.
        level_ranges: the root of the areas, in pixels, of the things of each level; empty: all
            things on all levels.
    """
    areas = image.masks.flatten(1).sum(1).double()
    labels, things = [], []
    for i, grid in enumerate(grids):
        inside = _at_size(image.masks, grid)
        if level_ranges:
            low, high = level_ranges[i]
            inside &= ((areas.sqrt() >= low) & (areas.sqrt() <= high))[:, None, None]
        things.append(_smallest(inside, areas))
        background = torch.full(grid, num_classes, device=areas.device)
        labels.append(background.masked_fill(_at_size(image.ignored[None], grid)[0], IGNORED))
    found = torch.cat([x.flatten() for x in things])
    _keep_the_vanished(found, image.masks, grids[0], strides[0])
    label = torch.cat([x.flatten() for x in labels])
    matched = found != UNMATCHED
    label[matched] = image.classes[found[matched]]
    return Assignment(label, found)


def _at_size(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Masks (G, H, W) bool at the size of a level."""
    if not len(masks):
        return masks.new_zeros((0, *grid))
    return F.interpolate(masks[:, None].float(), grid, mode="bilinear")[:, 0] >= 0.5


def _smallest(inside: Tensor, areas: Tensor) -> Tensor:
    """(h, w): the smallest of the things (G, h, w) that are at a cell, -1 for none."""
    things = torch.full(inside.shape[1:], UNMATCHED, device=inside.device)
    for i in areas.argsort(descending=True, stable=True).tolist():
        things[inside[i]] = i
    return things


def _keep_the_vanished(found: Tensor, masks: Tensor, grid: tuple[int, int], stride: int) -> None:
    kept = set(found.unique().tolist())
    for i, mask in enumerate(masks):
        if i not in kept and mask.any():
            row, column = (mask.nonzero().double().mean(0) / stride).long().tolist()
            found[min(row, grid[0] - 1) * grid[1] + min(column, grid[1] - 1)] = i


def sample_locations(assignment: Assignment, count: int) -> Tensor:
    """At most ``count`` foreground locations, "uniformly sampled" (Sec. 3.2), (n,) int64."""
    foreground = (assignment.things != UNMATCHED).nonzero()[:, 0]
    order = torch.randperm(len(foreground), device=foreground.device)
    return foreground[order[:count]]
