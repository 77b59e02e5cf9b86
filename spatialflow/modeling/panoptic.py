"""From instances and stuff to one panoptic map: the merge and the box fill (Sec. IV-B).

Legend: N instances, H x W pixels, S stuff labels ('other' or the things' labels included).
Everything stays on the device of its inputs; the host waits for it a fixed number of times,
however many instances there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from torch import Tensor

FREE = 0
"""Value of a pixel that no segment claims; void in the result."""


MERGE_REGISTRY = Registry("MERGE")
"""The merges by the names of their classes, under which outputs on disk remember them."""


@dataclass(frozen=True)
class Merge(ABC):
    """How the instances and stuff of an image become one panoptic map.

    A subclass is a frozen dataclass whose fields are its settings (numbers, strings, None and
    tuples of them), registered in :data:`MERGE_REGISTRY`.

    Attributes:
        reads_probabilities: whether instances need ``pred_mask_probs`` (N, M, M), the probabilities
            that the model predicted for their boxes, besides ``pred_masks``.
    """

    reads_probabilities: ClassVar[bool] = False

    def __call__(self, instances: Instances, stuff_scores: Tensor) -> tuple[Tensor, list[dict]]:
        """The map (H, W) int32, 0 for void, and its segments; see :func:`merge_panoptic`.

        Args:
            instances: ``pred_masks``, ``pred_boxes``, ``scores`` and ``pred_classes``.
            stuff_scores: (S, H, W).
        """
        return self.from_labels(instances, self.labels_of(stuff_scores), len(stuff_scores))

    def usable(self, instances: Instances) -> Instances:
        """Those of the instances of an image that can be on the map: by default all."""
        return instances

    def labels_of(self, stuff_scores: Tensor) -> Tensor:
        """What :meth:`from_labels` needs of the scores (S, H, W), in integers.

        By default it is the best label of each pixel, (H, W) int64. A merge that needs more has it
        in further maps, (P, H, W), the first of which is that of the best labels it uses.
        """
        return most_likely_labels(stuff_scores)

    @abstractmethod
    def from_labels(
        self, instances: Instances, stuff_labels: Tensor, num_stuff_labels: int
    ) -> tuple[Tensor, list[dict]]:
        """As the call, from what :meth:`labels_of` returned instead of scores."""

    def as_dict(self) -> dict[str, Any]:
        """Name and settings, for JSON."""
        return {"name": type(self).__name__, **asdict(self)}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Merge:
        """The merge that :meth:`as_dict` described.

        Raises:
            ValueError: no merge of this name is registered.
            KeyError, TypeError: there is no name, or the settings are not its own.
        """
        # JSON has no tuples.
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        name = settings.pop("name")
        if name not in MERGE_REGISTRY:
            raise ValueError(
                f"the merge {name!r} is not registered (MERGE_REGISTRY of spatialflow.modeling): "
                "import the module that defines it first"
            )
        return MERGE_REGISTRY.get(name)(**settings)


@MERGE_REGISTRY.register()
@dataclass(frozen=True)
class HeuristicMerge(Merge):
    """:func:`merge_panoptic` with settings under the names of its arguments.

    Without box fill it is the merge of Panoptic FPN (Kirillov et al., CVPR 2019, Sec. 3.2).
    """

    thing_labels: Collection[int] = (0,)
    score_thresh: float = 0.37
    overlap_thresh: float = 0.37
    stuff_area_limit: int = 4900
    box_fill_min_free: float | None = 0.6

    @classmethod
    def from_config(
        cls, cfg: CfgNode, box_fill_min_free: float | None = None
    ) -> HeuristicMerge | None:
        """Read MODEL.PANOPTIC_FPN.COMBINE; None when it is not enabled."""
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
        if not combine.ENABLED:
            return None
        return cls(
            thing_labels=tuple(cfg.MODEL.SEM_SEG_HEAD.THING_LABELS),
            score_thresh=combine.INSTANCES_CONFIDENCE_THRESH,
            overlap_thresh=combine.OVERLAP_THRESH,
            stuff_area_limit=combine.STUFF_AREA_LIMIT,
            box_fill_min_free=box_fill_min_free,
        )

    def usable(self, instances: Instances) -> Instances:
        """Those over the score threshold."""
        return instances[is_confident(instances.scores, self.score_thresh)]

    def from_labels(
        self, instances: Instances, stuff_labels: Tensor, num_stuff_labels: int
    ) -> tuple[Tensor, list[dict]]:
        """See :class:`Merge`."""
        return merge_panoptic(
            instances.pred_masks,
            instances.pred_boxes.tensor,
            instances.scores,
            instances.pred_classes,
            stuff_labels,
            num_stuff_labels=num_stuff_labels,
            **vars(self),
        )


def merge_panoptic(
    masks: Tensor,
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    stuff_labels: Tensor | None,
    *,
    num_stuff_labels: int,
    thing_labels: Collection[int],
    score_thresh: float,
    overlap_thresh: float,
    stuff_area_limit: int,
    box_fill_min_free: float | None,
) -> tuple[Tensor, list[dict]]:
    """Merge things and stuff in favour of things, then fill with boxes what is left.

    Args:
        masks: (N, H, W) bool.
        boxes: (N, 4) float, x1 y1 x2 y2 in pixels of the map.
        scores, classes: (N,) float and int64, contiguous thing ids.
        stuff_labels: (H, W) int64, 0 to S - 1; None without a stuff branch.
        num_stuff_labels: S.
        thing_labels: the stuff labels that are left out because they are things.
        score_thresh: instances below it are dropped.
        overlap_thresh: an instance is dropped when more than this share of its mask is taken.
        stuff_area_limit: pixels that a stuff segment needs at least.
        box_fill_min_free: the share of a box that must be free for the box to be filled; None
            leaves the fill out.

    Returns:
        The map, (H, W) int32 with 0 for void, and its segments in ascending id: dicts with ``id``,
        ``isthing``, ``category_id`` (thing id or stuff label), ``score`` (things) and ``area``.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[is_confident(scores[order], score_thresh)]
    panoptic = paint_instances(_in_order(masks, order), overlap_thresh)
    if stuff_labels is not None:
        paint_stuff(
            panoptic,
            stuff_labels,
            first_id=len(order) + 1,
            num_labels=num_stuff_labels,
            left_out=thing_labels,
            area_limit=stuff_area_limit,
        )
    if box_fill_min_free is not None:
        fill_boxes(panoptic, boxes[order], box_fill_min_free)
    return describe_segments(panoptic, scores[order], classes[order], num_stuff_labels)


def is_confident(scores: Tensor, score_thresh: float) -> Tensor:
    """Whether each instance passes the score threshold of the merge, (N,) bool."""
    # In double, as a threshold of 0.37 means 0.37 and not the nearest float32.
    return scores.double() >= score_thresh


def most_likely_labels(scores: Tensor) -> Tensor:
    """(H, W) int64: the label of the largest of the scores (S, H, W)."""
    return scores.max(dim=0).indices  # on a CPU more than twice as fast as argmax


def paint_instances(masks: Tensor, overlap_thresh: float) -> Tensor:
    """Give each instance the pixels of its mask that no earlier instance has.

    Args:
        masks: (N, H, W) bool, best first.
        overlap_thresh: see :func:`merge_panoptic`.

    Returns:
        (H, W) int32: i + 1 where instance i is, 0 elsewhere.
    """
    panoptic = masks.new_zeros(masks.shape[1:], dtype=torch.int32)
    free = torch.ones_like(panoptic, dtype=torch.bool)
    for i, window in enumerate(_windows(masks)):
        mask, region = masks[i][window], free[window]
        gained = mask & region
        area = torch.count_nonzero(mask)
        # Stays on the device; an empty mask gives nan, which paints nothing.
        gained &= (area - torch.count_nonzero(gained)).double() / area <= overlap_thresh
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
    for i, (x1, y1, x2, y2) in enumerate(boxes.clamp(min=0).long().tolist()):
        region = panoptic[y1:y2, x1:x2]
        if region.numel():
            free = region == FREE
            enough = torch.count_nonzero(free).double() / region.numel() >= min_free
            region.masked_fill_(free & enough, i + 1)


def _in_order(masks: Tensor, order: Tensor) -> Tensor:
    """``masks[order]``; no copy where these are the first ones, as those of a detector are."""
    first = torch.arange(len(order), device=order.device)
    return masks[: len(order)] if torch.equal(order, first) else masks[order]


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
