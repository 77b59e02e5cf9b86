"""Detection in tensors of fixed sizes: candidates, NMS, a constant number of rows.

Legend: K detections of an image (rows that hold none are zeros), C classes, n candidates.
Boxes are x1 y1 x2 y2. Sizes are (height, width), in a traced graph symbolic integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torchvision  # noqa: F401  # registers torchvision::nms and torchvision::roi_align
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor

NEVER = -1e9
"""Score of a candidate that shall come last."""


class Frame(NamedTuple):
    """Sizes of the network's input without padding, and of the result."""

    input_size: tuple[int, int]
    output_size: tuple[int, int]

    def scale(self) -> Tensor:
        """(4,): what brings boxes from the input to the result."""
        ratios = [
            _number(result) / _number(given)
            for result, given in zip(self.output_size, self.input_size, strict=True)
        ]
        return torch.stack([ratios[1], ratios[0]] * 2)


class Detections(NamedTuple):
    """``boxes`` (K, 4) at the output size, ``scores`` (K,) best first, ``classes`` (K,) int64."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor

    def exist(self) -> Tensor:
        """(K,) bool: the rows that hold a detection, whose box is not empty."""
        return (self.scores > 0) & is_not_empty(self.boxes)


def is_not_empty(boxes: Tensor, min_size: float = 0.0) -> Tensor:
    """(n,) bool: boxes whose sides are longer than ``min_size``."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides[:, 0] > min_size) & (sides[:, 1] > min_size)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes within an image of this size."""
    height, width = _number(size[0]), _number(size[1])
    return torch.minimum(boxes.clamp(min=0), torch.stack([width, height] * 2))


def level_anchors(generator: DefaultAnchorGenerator, features: Sequence[Tensor]) -> list[Tensor]:
    """The anchors of ``generator`` on features (1, C, h, w) of each level, (h w A, 4) each."""
    anchors = []
    for base, stride, feature in zip(
        generator.cell_anchors, generator.strides, features, strict=True
    ):
        height, width = feature.shape[-2:]
        y, x = ((torch.arange(n) + generator.offset) * float(stride) for n in (height, width))
        y, x = y[:, None].expand(height, width), x[None].expand(height, width)
        shifts = torch.stack((x, y, x, y), dim=2).reshape(-1, 1, 4)
        anchors.append((shifts + base[None]).reshape(-1, 4))
    return anchors


def best_of_level(scores: Tensor, count: int) -> Tensor:
    """The indices of the largest of the scores (n,), ``count`` of them or all."""
    return scores.topk(torch.sym_min(scores.shape[0], count)).indices


def over_threshold(
    boxes: Tensor, scores: Tensor, threshold: Tensor, nms_thresh: float, count: int
) -> Detections:
    """The detections among boxes with scores of each class.

    Args:
        boxes: (n, 4), the same for all classes, or (n, C, 4).
        scores: (n, C).
        threshold: scalar; boxes are candidates for the classes with a score over it.
        nms_thresh: IoU over which NMS drops a box, class by class.
        count: K.
    """
    usable = boxes.isfinite().all(dim=-1)
    usable = usable[:, None] if usable.dim() == 1 else usable
    rows, classes = ((scores > threshold) & usable).nonzero(as_tuple=True)
    boxes = boxes[rows] if boxes.dim() == 2 else boxes[rows, classes]
    scores = scores[rows, classes]
    # Two candidates that lose against all others: a graph cannot have none.
    boxes = torch.cat([boxes, boxes.new_zeros(2, 4)])
    scores = torch.cat([scores, scores.new_zeros(2)])
    classes = torch.cat([classes, torch.arange(2)])
    return suppress(boxes, scores, classes, nms_thresh, count)


def suppress(
    boxes: Tensor, scores: Tensor, classes: Tensor, nms_thresh: float, count: int
) -> Detections:
    """NMS class by class; the best, filled up with zeros.

    Args:
        boxes, scores, classes: of n candidates, two or more.
        nms_thresh: see :func:`over_threshold`.
        count: K.
    """
    # Boxes of different classes do not meet: each class has a place of its own.
    apart = boxes + (classes.to(boxes) * (boxes.max() + 1))[:, None]
    keep = torch.ops.torchvision.nms(apart, scores, nms_thresh)
    boxes, scores, classes = (
        torch.cat([x[keep], x.new_zeros(count, *x.shape[1:])])[:count]
        for x in (boxes, scores, classes)
    )
    return Detections(boxes, scores, classes)


def _number(value: int) -> Tensor:
    """A size, which may be symbolic, as a scalar."""
    return torch.scalar_tensor(value, dtype=torch.float32)
