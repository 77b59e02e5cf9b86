"""Which locations give the filters of things: the peaks of the scores, or the centres of boxes.

Legend: K thing classes, H_l x W_l the size of level l. Locations are numbered over all levels, see
:mod:`.filter_sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from torch import Tensor


class Peaks(NamedTuple):
    """Where the things of an image are: locations, scores and classes, (n,) each."""

    locations: Tensor
    scores: Tensor
    classes: Tensor


def find_peaks(logits: Sequence[Tensor], score_thresh: float, max_peaks: int) -> Peaks:
    """The best locations over the score threshold.

    Readings: the paper names a threshold alone, which thousands of locations of one thing
    pass. Those are taken that are the largest of their class in the 3x3 locations around them,
    and of these the best.

    Args:
        logits: (K, H_l, W_l) of each level.
        score_thresh: locations below it are no things.
        max_peaks: how many there are at most.
    """
    scores = []
    for x in logits:
        level = x.float().sigmoid()
        largest = F.max_pool2d(level[None], 3, stride=1, padding=1)[0]
        scores.append(torch.where(level == largest, level, 0).flatten(1))
    flat = torch.cat(scores, dim=1)
    num_locations = flat.shape[1]
    values, order = flat.flatten().sort(descending=True, stable=True)
    order = order[:max_peaks][values[:max_peaks] > score_thresh]
    return Peaks(order % num_locations, flat.flatten()[order], order // num_locations)


def central_locations(
    logits: Sequence[Tensor], strides: Sequence[int], boxes: Boxes, classes: Tensor
) -> Tensor:
    """The location at the centre of each box, on the level that is surest of its class.

    Args:
        logits: (K, H_l, W_l) of each level.
        strides: of the levels.
        boxes: n boxes in pixels of the network input.
        classes: (n,) int64.

    Returns:
        (n,) int64.
    """
    centres, start, scores, locations = boxes.get_centers(), 0, [], []
    for level, stride in zip(logits, strides, strict=True):
        height, width = level.shape[-2:]
        columns = (centres[:, 0] / stride).long().clamp(0, width - 1)
        rows = (centres[:, 1] / stride).long().clamp(0, height - 1)
        scores.append(level[classes, rows, columns])
        locations.append(start + rows * width + columns)
        start += height * width
    best = torch.stack(scores).argmax(dim=0)
    return torch.stack(locations).gather(0, best[None])[0]
