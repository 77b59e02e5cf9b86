"""The total loss of SPINet, eq. (7): targets, samples and weights.

Legend: N images, S stuff labels, n sampled locations of an image, h x w the size of the panoptic
feature. Void, crowds and padding are left out of all terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ..focal_loss import focal_loss_in_parts
from ..ground_truth import bit_masks, crowd_mask, gt_instances, target
from ..loss_normalizer import mean_over_processes
from .auxiliary import at_feature_size
from .dense_masks import STRIDE
from .losses import dice_loss, hardest_cross_entropy, multi_class_dice_loss
from .targets import ImageTargets, assign_locations, sample_locations

WEIGHT_OF = {
    "loss_cls": "CLS",
    "loss_sem_seg": "STUFF",
    "loss_sem_seg_dice": "STUFF",
    "loss_mask": "THING",
    "loss_contour": "INTER",
    "loss_triplet": "INTRA",
}
"""The weight of each term, lambda_0 to lambda_4 of eq. (7)."""


class Sampled(NamedTuple):
    """Of each image the sampled locations, (n,), and the things that they belong to, (n,)."""

    locations: list[Tensor]
    things: list[Tensor]


class Criterion:
    """What the outputs of a SPINet lose.

    Args:
        num_classes: thing classes.
        ignore_value: stuff label of pixels that are left out.
        weights: of the terms: ``CLS``, ``STUFF``, ``THING``, ``INTER`` and ``INTRA``.
        stuff_dice: whether L_s has the multi-class dice loss (Table 3).
        hard_pixels: share of the pixels in the cross-entropy of L_s.
        num_samples: filters that are sampled an image.
        level_ranges: see :func:`assign_locations`.
        focal_alpha, focal_gamma: of L_cls.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        ignore_value: int,
        weights: dict[str, float],
        stuff_dice: bool,
        hard_pixels: float,
        num_samples: int,
        level_ranges: Sequence[tuple[float, float]],
        focal_alpha: float,
        focal_gamma: float,
    ):
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.weights = weights
        self.stuff_dice = stuff_dice
        self.hard_pixels = hard_pixels
        self.num_samples = num_samples
        self.level_ranges = level_ranges
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """From MODEL.SPINET, RETINANET and SEM_SEG_HEAD, whose LOSS_WEIGHT is that of L_s."""
        keys, detection, head = cfg.MODEL.SPINET, cfg.MODEL.RETINANET, cfg.MODEL.SEM_SEG_HEAD
        return {
            "num_classes": detection.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
            "weights": {**keys.LOSS_WEIGHTS, "STUFF": head.LOSS_WEIGHT},
            "stuff_dice": keys.STUFF_DICE,
            "hard_pixels": keys.HARD_PIXELS,
            "num_samples": keys.NUM_SAMPLES,
            "level_ranges": keys.LEVEL_RANGES,
            "focal_alpha": detection.FOCAL_LOSS_ALPHA,
            "focal_gamma": detection.FOCAL_LOSS_GAMMA,
        }

    def classification(
        self, logits: Sequence[Tensor], targets: Sequence[ImageTargets], strides: Sequence[int]
    ) -> tuple[dict[str, Tensor], Sampled]:
        """``loss_cls``, the focal loss over the number of foreground locations, and the samples.

        Args:
            logits: (N, K, H_l, W_l) of each level.
            targets: of each image.
            strides: pixels a cell of each level.
        """
        grids = [(x.shape[-2], x.shape[-1]) for x in logits]
        assigned = [
            assign_locations(t, grids, strides, self.num_classes, self.level_ranges)
            for t in targets
        ]
        flat = torch.cat([x.flatten(2) for x in logits], dim=2).transpose(1, 2).flatten(0, 1)
        labels = torch.cat([a.labels for a in assigned])
        foreground = ((labels >= 0) & (labels < self.num_classes)).sum()
        loss = focal_loss_in_parts(flat.float(), labels, self.focal_alpha, self.focal_gamma)
        loss = loss / mean_over_processes(foreground, like=loss)
        locations = [sample_locations(a, self.num_samples) for a in assigned]
        things = [a.things[x] for a, x in zip(assigned, locations, strict=True)]
        return {"loss_cls": loss}, Sampled(locations, things)

    def segmentation(
        self, logits: Sequence[Tensor], sampled: Sampled, targets: Sequence[ImageTargets]
    ) -> dict[str, Tensor]:
        """``loss_mask``, eq. (1), and ``loss_sem_seg`` and ``loss_sem_seg_dice``, L_s.

        Both at stride 4, "scaled to the stride of 4" (Sec. 3.4).

        Args:
            logits: (n + S, h, w) of each image, things first.
            sampled: the samples.
            targets: of each image.
        """
        mask, entropy, dice, pixels = [], [], [], 0
        for x, things, image in zip(logits, sampled.things, targets, strict=True):
            counted = at_feature_size(~image.ignored[None])
            wanted = at_feature_size(image.masks)[things]
            thing_logits, scores = x[: len(things)], x[len(things) :]
            mask.append(dice_loss(thing_logits.float().sigmoid() * counted, wanted * counted).sum())
            labels = _at_cell_centres(image.stuff)
            hardest, count = hardest_cross_entropy(
                scores, labels, self.ignore_value, self.hard_pixels
            )
            entropy.append(hardest)
            pixels += count
            dice.append(multi_class_dice_loss(scores, labels, self.ignore_value))
        sums = [(mask, sum(len(x) for x in sampled.things)), (entropy, pixels), (dice, len(dice))]
        means = [
            torch.stack(terms).sum() / mean_over_processes(count, like=terms[0])
            for terms, count in sums
        ]
        losses = dict(zip(("loss_mask", "loss_sem_seg", "loss_sem_seg_dice"), means, strict=True))
        if not self.stuff_dice:
            del losses["loss_sem_seg_dice"]
        return losses

    def weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each term times its weight, eq. (7)."""
        return {name: self.weights[WEIGHT_OF[name]] * loss for name, loss in losses.items()}


def image_targets(
    image: dict[str, Any], size: tuple[int, int], ignore_value: int, device: torch.device
) -> ImageTargets:
    """The ground truth of one input, padded to the size of its batch.

    Raises:
        ValueError: a target is missing, see :mod:`spatialflow.modeling.ground_truth`.
    """
    height, width = image["image"].shape[-2:]
    padding = (0, size[1] - width, 0, size[0] - height)
    instances = gt_instances(image, device, masks=True)
    stuff = target(image, "sem_seg").to(device)
    stuff = stuff.masked_fill(crowd_mask(image, device), ignore_value)
    stuff = F.pad(stuff, padding, value=ignore_value)
    masks = F.pad(bit_masks(instances), padding)
    return ImageTargets(masks, instances.gt_classes, stuff, stuff == ignore_value)


def _at_cell_centres(labels: Tensor) -> Tensor:
    """Labels (H, W) at stride 4: those of the pixel behind the centre of each cell."""
    return labels[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
