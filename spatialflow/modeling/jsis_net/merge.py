"""The merging heuristics (Sec. 2.2).

Legend: n instances, M the side of a predicted mask, H x W pixels, S stuff labels, P those of them
that are somewhere the best stuff label.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

from ..painting import describe_segments, paint_most_probable
from ..panoptic import MERGE_REGISTRY, Merge, is_confident


@MERGE_REGISTRY.register()
@dataclass(frozen=True)
class PixelwiseMerge(Merge):
    """Each pixel to the most probable of the masks over it, the others to stuff; none is void.

    Attributes:
        thing_labels: the stuff labels that give way to the best stuff class (Sec. 2.2.2).
        score_thresh: instances below it are dropped.
        stuff_area_limit: pixels that a stuff label needs at least, before instances are pasted;
            those of a smaller one go to the best of the labels that are left, and the largest
            label is always left. *Reading*: counted at the size of the map, and once.
    """

    thing_labels: Collection[int] = (0,)
    score_thresh: float = 0.5
    stuff_area_limit: int = 4096

    @property
    def reads_probabilities(self) -> bool:
        """Pixels go by them."""
        return True

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PixelwiseMerge | None:
        """Read MODEL.PANOPTIC_FPN.COMBINE; None when it is not enabled."""
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
        if not combine.ENABLED:
            return None
        return cls(
            thing_labels=tuple(cfg.MODEL.SEM_SEG_HEAD.THING_LABELS),
            score_thresh=combine.INSTANCES_CONFIDENCE_THRESH,
            stuff_area_limit=combine.STUFF_AREA_LIMIT,
        )

    def usable(self, instances: Instances) -> Instances:
        """Those over the score threshold."""
        return instances[is_confident(instances.scores, self.score_thresh)]

    def labels_of(self, stuff_scores: Tensor) -> Tensor:
        """See :func:`nested_stuff_labels`."""
        return nested_stuff_labels(stuff_scores, self.thing_labels)

    def from_labels(
        self, instances: Instances, stuff_labels: Tensor, num_stuff_labels: int
    ) -> tuple[Tensor, list[dict]]:
        """See :class:`Merge`; ``stuff_labels`` (P, H, W) are those of :meth:`labels_of`."""
        instances = self.usable(instances)
        instances = instances[instances.scores.argsort(descending=True, stable=True)]
        panoptic = paint_most_probable(
            instances.pred_mask_probs, instances.pred_boxes.tensor, instances.image_size
        )
        stuff = surviving_labels(stuff_labels, self.stuff_area_limit)
        panoptic = torch.where(panoptic == 0, stuff.int() + len(instances) + 1, panoptic)
        return describe_segments(
            panoptic, instances.scores, instances.pred_classes, num_stuff_labels
        )


def nested_stuff_labels(scores: Tensor, left_out: Collection[int]) -> Tensor:
    """The best stuff labels, with what takes their place when small labels are removed.

    Whatever the least area that a label needs, the labels that have it are the largest ones. So a
    map for each number of labels that may be removed answers for every limit.

    Args:
        scores: (S, H, W).
        left_out: labels that no pixel gets.

    Returns:
        (P, H, W) int16. The first map has the best label of each pixel; in the map i + 1 the
        label with the smallest area in the first map of those in map i is gone, and its pixels
        have the best of the others.
    """
    stuff = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    stuff[list(left_out)] = False
    of_stuff = scores.masked_fill(~stuff[:, None, None], -torch.inf)
    best = of_stuff.max(dim=0).indices
    areas = torch.bincount(best.flatten(), minlength=len(scores))
    largest_first = areas.argsort(descending=True, stable=True)
    present = largest_first[: int(torch.count_nonzero(areas))].tolist()
    highest = scores[present[0]].clone()
    maps = [torch.full_like(best, present[0], dtype=torch.int16)]
    for label in present[1:-1]:
        gained = scores[label] > highest
        torch.where(gained, scores[label], highest, out=highest)
        maps.append(maps[-1].masked_fill(gained, label))
    if len(present) > 1:
        maps.append(best.to(torch.int16))
    return torch.stack(maps[::-1])


def surviving_labels(nested: Tensor, area_limit: int) -> Tensor:
    """(H, W) int64: the best of the labels that are large enough, or else the largest (Sec. 2.2.2).

    Args:
        nested: (P, H, W) of :func:`nested_stuff_labels`.
        area_limit: pixels that a label needs at least.
    """
    areas = torch.bincount(nested[0].flatten())
    too_small = int(torch.count_nonzero((areas > 0) & (areas < area_limit)))
    return nested[min(too_small, len(nested) - 1)].long()
