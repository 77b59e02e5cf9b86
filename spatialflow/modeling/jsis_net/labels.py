"""The labels of the semantic branch, which has a label for every class (Sec. 2.1, 2.2.2).

Legend: K thing classes, S stuff labels of the dataset, among them one that stands for all things
('other', COCO) or one for each thing class (Cityscapes); L labels of the branch; H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from ..ground_truth import bit_masks


@dataclass(frozen=True)
class SemanticLabels:
    """Between the dataset's stuff labels and the branch's.

    Where 'other' stands for all things, the branch has the stuff labels without it, then the K
    thing classes: 133 labels on COCO. Otherwise it has the dataset's labels.

    Attributes:
        num_things: K.
        num_stuff: S.
        thing_labels: the stuff labels of things.
        ignore: the stuff label of pixels without a label.
    """

    num_things: int
    num_stuff: int
    thing_labels: Sequence[int]
    ignore: int = 255

    @property
    def splits_other(self) -> bool:
        """Whether the thing classes stand in the place of 'other'."""
        return len(self.thing_labels) == 1 and self.num_things > 1

    def __len__(self) -> int:
        """L."""
        return self.num_stuff + (self.num_things - 1 if self.splits_other else 0)

    def targets(self, stuff_labels: Tensor, things: Instances) -> Tensor:
        """(H, W) int64, the branch's label of each pixel.

        Args:
            stuff_labels: (H, W) int64, the dataset's.
            things: ``gt_masks`` and ``gt_classes``. Pixels of 'other' that no thing has, which are
                those of crowds, are ignored, as crowds are in the other losses.
        """
        if not self.splits_other:
            return stuff_labels
        (other,) = self.thing_labels
        is_other = stuff_labels == other
        after = (stuff_labels > other) & (stuff_labels != self.ignore)
        labels = torch.where(after, stuff_labels - 1, stuff_labels)
        labels[is_other] = self.ignore
        for mask, class_ in zip(bit_masks(things), things.gt_classes, strict=True):
            labels = torch.where(mask & is_other, class_ + self.num_stuff - 1, labels)
        return labels

    def fold(self, scores: Tensor) -> Tensor:
        """The scores of the dataset's stuff labels, as other models have them.

        Args:
            scores: (N, L, H, W) logits of the branch.

        Returns:
            (N, S, H, W) logits of the same softmax: that of 'other' is of any thing class.
        """
        if not self.splits_other:
            return scores
        (other,) = self.thing_labels
        stuff, things = scores.split([self.num_stuff - 1, self.num_things], dim=1)
        any_thing = things.logsumexp(dim=1, keepdim=True)
        return torch.cat([stuff[:, :other], any_thing, stuff[:, other:]], dim=1)
