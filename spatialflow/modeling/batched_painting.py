"""The steps of :mod:`.painting` in few operations on all instances at once, for CUDA.

A loop over instances launches a dozen small kernels for each. Here the pixels are grouped into
cells in which all instances agree, and the rule "best first, each sees what the kept ones before it
took" is solved on the cells. Results are those of the loops, bit by bit.

Legend: N instances, H x W pixels, C cells, M the side of a predicted mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.layers.mask_ops import _do_paste_mask
from torch import Tensor

AT_A_TIME = 16
"""Masks of the size of the map that intermediate results are made of at once."""

Keeps = Callable[[Tensor, Tensor], Tensor]
"""Which of the instances are kept, (N,) bool, by their free pixels and their pixels (N,)."""


def owners(regions: Tensor, sizes: Tensor, areas: Tensor, keeps: Keeps) -> Tensor:
    """The instance that gets each cell when they come one by one, best first.

    ``kept`` decides who owns the cells, and the owners decide who is kept: each round computes
    both from the ``kept`` of the round before. Instance i depends on the instances before it
    alone, so round i at the latest has its final value, and a round that changes nothing has
    everyone's. Most instances depend on few others, and a few rounds do; each makes the host wait.

    Args:
        regions: (N, C) bool, the cells that each instance claims, best first.
        sizes: (C,) int32, pixels of each cell.
        areas: (N,) int64, the pixels that ``keeps`` compares with.
        keeps: the rule.

    Returns:
        (C,) int64: i where instance i is, N where none is.
    """
    count = len(regions)
    index = torch.arange(count, device=regions.device)[:, None]
    kept = torch.ones(count, dtype=torch.bool, device=regions.device)
    while True:
        # The first of equal maxima is the first kept instance.
        claimed, owner = (regions & kept[:, None]).view(torch.uint8).max(dim=0)
        owner = owner.masked_fill_(claimed == 0, count)
        free = torch.where(regions & (owner >= index), sizes, 0).sum(dim=1)
        before, kept = kept, keeps(free, areas)
        if torch.equal(kept, before):
            return owner


def paint_instances(masks: Tensor, keeps: Keeps) -> Tensor:
    """See :func:`.painting.paint_instances`.

    The cells are runs of pixels in reading order over which no mask changes.
    """
    count, height, width = masks.shape
    if masks.numel() == 0:
        return masks.new_zeros((height, width), dtype=torch.int32)
    flat = masks.flatten(1).view(torch.uint8)
    starts = torch.zeros_like(flat[0])
    starts[0] = 1
    for part in flat.split(AT_A_TIME):
        starts[1:] |= (part[:, 1:] != part[:, :-1]).view(torch.uint8).amax(dim=0)
    first = starts.nonzero().flatten()
    end = torch.full_like(first[:1], height * width)
    sizes = torch.diff(first, append=end)
    areas = torch.count_nonzero(masks, dim=(1, 2))
    owner = owners(masks.flatten(1)[:, first], sizes.int(), areas, keeps)
    painted = torch.where(owner < count, owner + 1, 0).int()
    painted = painted.repeat_interleave(sizes, output_size=height * width)
    return painted.view(height, width)


def fill_boxes(free: Tensor, boxes: Tensor, keeps: Keeps) -> Tensor:
    """See :func:`.painting.fill_boxes`.

    The cells are the rectangles between the sides of all boxes.

    Args:
        free: (H, W) bool.
        boxes: (N, 4) int64, none negative.
        keeps: the rule.

    Returns:
        (H, W) int32: i + 1 where box i fills the map, 0 elsewhere.
    """
    height, width = free.shape
    count = len(boxes)
    if boxes.numel() == 0 or free.numel() == 0:
        return torch.zeros_like(free, dtype=torch.int32)
    sides = boxes.minimum(boxes.new_tensor([width, height, width, height]))
    columns, column_of, in_columns = _strips(sides[:, 0], sides[:, 2], width)
    rows, row_of, in_rows = _strips(sides[:, 1], sides[:, 3], height)
    cell_of = row_of[:, None] * len(columns) + column_of
    sizes = torch.bincount(cell_of[free], minlength=len(rows) * len(columns))
    areas = (sides[:, 2:] - sides[:, :2]).clamp(min=0).prod(dim=1)
    regions = (in_rows[:, :, None] & in_columns[:, None]).flatten(1)
    owner = owners(regions, sizes.int(), areas, keeps)
    painted = torch.where(owner < count, owner + 1, 0).int()
    return painted[cell_of] * free


def _strips(begin: Tensor, end: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut ``length`` pixels at the ends of N intervals: the strips, at most 2 N + 1.

    Returns:
        Where each strip begins, (s,); the strip of each pixel, (length,); and which strips each
        interval has, (N, s) bool.
    """
    cuts = torch.cat([begin, end, torch.zeros_like(begin[:1])]).sort().values
    pixels = torch.arange(length, device=cuts.device)
    strip_of = torch.searchsorted(cuts, pixels, right=True) - 1
    inside = (cuts >= begin[:, None]) & (cuts < end[:, None])
    return cuts, strip_of, inside


def paint_most_probable(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], min_prob: float
) -> Tensor:
    """See :func:`.painting.paint_most_probable`; some masks at a time have the map's size."""
    panoptic = torch.zeros(size, dtype=torch.int32, device=masks.device)
    highest = torch.zeros(size, device=masks.device)
    for start in range(0, len(masks), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        pasted, _ = _do_paste_mask(masks[part, None], boxes[part], *size, skip_empty=False)
        # A box without area gives nan, which gains nothing.
        usable = (pasted >= min_prob) & _windows(boxes[part], size)
        best, index = torch.where(usable, pasted, 0).max(dim=0)
        gained = best > highest
        highest = torch.where(gained, best, highest)
        panoptic = torch.where(gained, index.int() + start + 1, panoptic)
    return panoptic


def _windows(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels around each box that ``_do_paste_mask`` gives for it alone, (n, H, W) bool."""
    inside = []
    for axis, length in ((1, size[0]), (0, size[1])):
        pixels = torch.arange(length, device=boxes.device)
        begin, end = boxes[:, axis].floor() - 1, boxes[:, axis + 2].ceil() + 1
        inside.append((pixels >= begin[:, None]) & (pixels < end[:, None]))
    rows, columns = inside
    return rows[:, :, None] & columns[:, None]
