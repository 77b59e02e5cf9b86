"""A denser training signal for the same heads: ATSS and the quality focal loss.

A second detector to try the flows with; the papers have RetinaNet alone.

Legend: N images, K thing classes, R anchors over all levels, M boxes of the ground truth.
"""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.structures.boxes import matched_pairwise_iou
from fvcore.nn import giou_loss
from torch import Tensor

from .detection import AnchorTargets, DensePredictions, Detector
from .focal_loss import quality_focal_loss_in_parts
from .loss_normalizer import mean_over_processes

CANDIDATES = 9
"""Anchors of each level that a box may be assigned (ATSS, Sec. 4)."""
BOX_WEIGHT = 2.0
"""Weight of the box loss in GFL."""
QUALITY_BETA = 2.0
"""Exponent of the quality focal loss (GFL, eq. 2)."""


class GFLDetector(Detector):
    """RetinaNet's heads, trained with ATSS and the quality focal loss.

    ATSS (Zhang et al., CVPR 2020) gives each box the anchors near its centre whose IoU stands out;
    the class score learns the IoU of the predicted box (Li et al., "Generalized Focal Loss",
    NeurIPS 2020, eq. 2), and the box loss is GIoU. Their distribution of box sides, eq. 6, is left
    out: the heads stay RetinaNet's. One anchor a cell is enough.
    """

    def losses(
        self, predictions: DensePredictions, anchors: list[Boxes], targets: AnchorTargets
    ) -> dict[str, Tensor]:
        """See :class:`Detector`."""
        labels = targets.labels
        logits, deltas = (torch.cat(x, dim=1) for x in predictions)
        positive = (labels >= 0) & (labels < self.num_classes)
        all_anchors = Boxes.cat(anchors).tensor.expand(len(labels), -1, -1)
        boxes = self.decode(deltas[positive], all_anchors[positive])
        truth = torch.stack(targets.boxes)[positive]
        quality = logits.new_zeros(labels.shape)
        quality[positive] = matched_pairwise_iou(Boxes(boxes.detach()), Boxes(truth)).to(quality)
        loss_cls = quality_focal_loss_in_parts(
            logits.flatten(0, 1), labels.flatten(), quality.flatten(), QUALITY_BETA
        )
        # A box counts as much as its class is sure.
        weight = logits.detach()[positive].sigmoid().amax(dim=1)
        loss_box_reg = (giou_loss(boxes, truth) * weight).sum()
        return {
            "loss_cls": loss_cls / self.normalizer(positive),
            "loss_box_reg": BOX_WEIGHT * loss_box_reg / mean_over_processes(weight.sum(), labels),
        }

    def match(self, gt: Instances, anchors: list[Boxes], inside: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Detector`."""
        return atss(gt.gt_boxes, anchors, inside)


def atss(gt_boxes: Boxes, anchors: list[Boxes], inside: Tensor) -> tuple[Tensor, Tensor]:
    """Adaptive training sample selection (Zhang et al., CVPR 2020, algorithm 1).

    Args:
        gt_boxes: M boxes.
        anchors: of each level.
        inside: (R,) bool, the anchors that can be chosen.

    Returns:
        (R,) int64, the box of each anchor, and (R,) int64, 1 where it is assigned, 0 elsewhere.
    """
    centers = Boxes.cat(anchors).get_centers()
    if not len(gt_boxes):
        none = torch.zeros(len(centers), dtype=torch.int64, device=centers.device)
        return none, none
    distance = torch.cdist(gt_boxes.get_centers(), centers).masked_fill(~inside, torch.inf)
    nearest = _nearest_of_each_level(distance, [len(x) for x in anchors])
    iou = pairwise_iou(gt_boxes, Boxes.cat(anchors)).gather(1, nearest)
    # A level with few anchors in the image must not take the threshold from those in the padding.
    usable = distance.gather(1, nearest).isfinite()
    count = usable.sum(dim=1, keepdim=True)
    mean = (iou * usable).sum(dim=1, keepdim=True) / count
    variance = ((iou - mean) ** 2 * usable).sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
    chosen = usable & (iou >= mean + variance.sqrt())
    near = centers[nearest]  # (M, n, 2)
    box = gt_boxes.tensor[:, None]
    chosen &= ((near > box[..., :2]) & (near < box[..., 2:])).all(dim=2)
    scores = torch.full_like(distance, -1.0)
    scores.scatter_(1, nearest, torch.where(chosen, iou, -1.0))
    best, matched = scores.max(dim=0)
    return matched, (best >= 0).long()


def _nearest_of_each_level(distance: Tensor, sizes: list[int]) -> Tensor:
    """(M, n): indices of the CANDIDATES nearest anchors of each level."""
    parts, start = [], 0
    for level in distance.split(sizes, dim=1):
        count = min(CANDIDATES, level.shape[1])
        parts.append(level.topk(count, dim=1, largest=False).indices + start)
        start += level.shape[1]
    return torch.cat(parts, dim=1)
