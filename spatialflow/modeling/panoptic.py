"""From instances and stuff to one panoptic map: the merge and the box fill (Sec. IV-B).

Legend: N instances, H x W pixels, S stuff labels ('other' or the things' labels included).
Everything stays on the device of its inputs. On CUDA the host waits for it a few times, as often as
the longest chain of decisions has links, not once for each instance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from torch import Tensor

from .painting import describe_segments, fill_boxes, fill_rims, paint_instances, paint_stuff

MERGE_REGISTRY = Registry("MERGE")
"""The merges by the names of their classes, under which outputs on disk remember them."""


@dataclass(frozen=True)
class Merge(ABC):
    """How the instances and stuff of an image become one panoptic map.

    A subclass is a frozen dataclass whose fields are its settings (numbers, strings, None and
    tuples of them), registered in :data:`MERGE_REGISTRY`.
    """

    @property
    def reads_probabilities(self) -> bool:
        """Whether instances need ``pred_mask_probs`` (N, M, M), the probabilities that the model
        predicted for their boxes, besides ``pred_masks``.
        """
        return False

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
    rim_fill_min_prob: float | None = None

    @property
    def reads_probabilities(self) -> bool:
        """The fill of rims goes by them."""
        return self.rim_fill_min_prob is not None

    @classmethod
    def from_config(cls, cfg: CfgNode, **fills: float | None) -> HeuristicMerge | None:
        """Read MODEL.PANOPTIC_FPN.COMBINE; None when it is not enabled.

        Args:
            cfg: the config.
            fills: ``box_fill_min_free`` and ``rim_fill_min_prob``, both None by default.
        """
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
        if not combine.ENABLED:
            return None
        return cls(
            thing_labels=tuple(cfg.MODEL.SEM_SEG_HEAD.THING_LABELS),
            score_thresh=combine.INSTANCES_CONFIDENCE_THRESH,
            overlap_thresh=combine.OVERLAP_THRESH,
            stuff_area_limit=combine.STUFF_AREA_LIMIT,
            **{"box_fill_min_free": None, **fills},
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
            mask_probs=instances.pred_mask_probs if self.reads_probabilities else None,
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
    rim_fill_min_prob: float | None = None,
    mask_probs: Tensor | None = None,
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
        rim_fill_min_prob: see :func:`fill_rims`, which comes before the box fill; None leaves it
            out. (Our extension; the papers leave these pixels void.)
        mask_probs: (N, M, M), which the fill of rims needs.

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
    if rim_fill_min_prob is not None:
        assert mask_probs is not None
        fill_rims(panoptic, mask_probs[order], boxes[order], rim_fill_min_prob)
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


def _in_order(masks: Tensor, order: Tensor) -> Tensor:
    """``masks[order]``; no copy where these are the first ones, as those of a detector are."""
    first = torch.arange(len(order), device=order.device)
    return masks[: len(order)] if torch.equal(order, first) else masks[order]
