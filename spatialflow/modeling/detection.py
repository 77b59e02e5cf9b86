"""Detection: RetinaNet's heads, losses and inference on the features of the sub-networks.

Legend: N images, K thing classes, A anchors a cell, R anchors over all levels, C channels.
Boxes are x1 y1 x2 y2 in pixels of the resized image unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import (
    DefaultAnchorGenerator,
    build_anchor_generator,
)
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from .boxes import covered_share, select_detections
from .focal_loss import IGNORED, focal_loss_in_parts
from .layers import conv3x3
from .loss_normalizer import mean_over_processes
from .tracing import indices_of_largest

CROWD_COVER = 0.5
"""An unmatched anchor with more than this share of its area on crowd pixels is ignored, as PQ
ignores a segment like that."""


class DensePredictions(NamedTuple):
    """Per level: ``logits`` (N, H_i W_i A, K) and ``deltas`` (N, H_i W_i A, 4)."""

    logits: list[Tensor]
    deltas: list[Tensor]


class AnchorTargets(NamedTuple):
    """``labels`` (N, R): class, K for background, -1 for ignored. ``boxes``: N tensors (R, 4)."""

    labels: Tensor
    boxes: list[Tensor]


class Detector(nn.Module):
    """The cls and reg heads with their training and inference.

    Args:
        channels: C.
        num_classes: K.
        anchor_generator: Detectron2's, for P3 to P7.
        anchor_matcher: labels anchors by IoU with the ground truth.
        box2box_transform: between anchors and boxes.
        prior_prob: foreground probability that the cls head starts with.
        focal_loss_alpha, focal_loss_gamma: of the focal loss.
        box_reg_loss_type: "smooth_l1" of the deltas, or "giou", "diou" or "ciou" of the boxes.
        smooth_l1_beta: 0 makes it the L1 loss.
        score_thresh: detections below it are dropped.
        topk_candidates: anchors kept for each level before NMS.
        nms_thresh: IoU over which NMS drops, class by class (0.4: Sec. IV-B).
        max_detections: boxes kept for each image (100: Sec. IV-B).
        size_divisibility: the backbone itself pads images to multiples of it; 0: no padding.
    """

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        anchor_generator: DefaultAnchorGenerator,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        prior_prob: float = 0.01,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
        nms_thresh: float = 0.4,
        max_detections: int = 100,
        size_divisibility: int = 32,
    ):
        super().__init__()
        num_anchors = anchor_generator.num_anchors[0]
        self.cls_score = conv3x3(channels, num_anchors * num_classes)
        self.bbox_pred = conv3x3(channels, num_anchors * 4)
        assert self.cls_score.bias is not None
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))
        self.num_classes = num_classes
        self.anchor_generator: DefaultAnchorGenerator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        self.size_divisibility = size_divisibility

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec], size_divisibility: int
    ) -> dict:
        """``input_shape``: of P3 to P7."""
        retinanet = cfg.MODEL.RETINANET
        return {
            "channels": input_shape[0].channels,
            "num_classes": retinanet.NUM_CLASSES,
            "anchor_generator": build_anchor_generator(cfg, list(input_shape)),
            "anchor_matcher": Matcher(
                retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS, allow_low_quality_matches=True
            ),
            "box2box_transform": Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS),
            "prior_prob": retinanet.PRIOR_PROB,
            "focal_loss_alpha": retinanet.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": retinanet.FOCAL_LOSS_GAMMA,
            "box_reg_loss_type": retinanet.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": retinanet.SMOOTH_L1_LOSS_BETA,
            "score_thresh": retinanet.SCORE_THRESH_TEST,
            "topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
            "nms_thresh": retinanet.NMS_THRESH_TEST,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "size_divisibility": size_divisibility,
        }

    def forward(self, cls_features: list[Tensor], reg_features: list[Tensor]) -> DensePredictions:
        """Class logits and box deltas from cls_4 and reg_4 of P3 to P7, each (N, C, H_i, W_i)."""
        return DensePredictions(
            [permute_to_N_HWA_K(self.cls_score(x), self.num_classes) for x in cls_features],
            [permute_to_N_HWA_K(self.bbox_pred(x), 4) for x in reg_features],
        )

    def losses(
        self, predictions: DensePredictions, anchors: list[Boxes], targets: AnchorTargets
    ) -> dict[str, Tensor]:
        """Focal loss and box regression loss over the number of positive anchors.

        The normaliser counts at least one positive for each image.

        Returns:
            ``loss_cls`` and ``loss_box_reg``.
        """
        labels = targets.labels
        positive = (labels >= 0) & (labels < self.num_classes)
        normalizer = self.normalizer(positive)
        loss_cls = self.classification_loss(torch.cat(predictions.logits, dim=1), labels)
        loss_box_reg = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            predictions.deltas,
            targets.boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box_reg / normalizer}

    @staticmethod
    def normalizer(positive: Tensor) -> Tensor:
        """The number of positive anchors, (N, R) bool, at least one for each image."""
        return mean_over_processes(positive.sum(dim=1).clamp(min=1).sum(), like=positive)

    def classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum of the focal loss over all anchors that are not ignored.

        Args:
            logits: (N, R, K).
            labels: (N, R), see :class:`AnchorTargets`.
        """
        return focal_loss_in_parts(
            logits.flatten(0, 1), labels.flatten(), self.focal_loss_alpha, self.focal_loss_gamma
        )

    @torch.no_grad()
    def label_anchors(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        crowd_masks: list[Tensor],
        grid_sizes: list[tuple[int, int]],
    ) -> AnchorTargets:
        """Match anchors to the ground truth.

        Anchors on a crowd, and anchors whose cell is only there because the batch holds a larger
        image, are ignored rather than background.

        Args:
            anchors: anchors of each level.
            gt_instances: ground truth of each image, with ``gt_boxes`` and ``gt_classes``.
            crowd_masks: crowd regions of each image, (h, w) bool.
            grid_sizes: (H_i, W_i) of each level.
        """
        all_anchors = Boxes.cat(anchors)
        labels, boxes = [], []
        for gt, crowd_mask in zip(gt_instances, crowd_masks, strict=True):
            inside = self._inside(gt.image_size, grid_sizes, all_anchors.device)
            matched, match_labels = self.match(gt, anchors, inside)
            background = match_labels == 0
            if len(gt):
                labels_i, boxes_i = gt.gt_classes[matched], gt.gt_boxes.tensor[matched]
            else:
                labels_i, boxes_i = torch.zeros_like(matched), torch.zeros_like(all_anchors.tensor)
            labels_i = labels_i.masked_fill(background, self.num_classes)
            on_crowd = covered_share(crowd_mask, all_anchors.tensor) > CROWD_COVER
            labels_i[background & on_crowd] = IGNORED
            labels_i[(match_labels == -1) | ~inside] = IGNORED
            labels.append(labels_i)
            boxes.append(boxes_i)
        return AnchorTargets(torch.stack(labels), boxes)

    def match(self, gt: Instances, anchors: list[Boxes], inside: Tensor) -> tuple[Tensor, Tensor]:
        """Assign the anchors of an image.

        Args:
            gt: with ``gt_boxes``.
            anchors: of each level.
            inside: (R,) bool, the anchors that do not lie in padding.

        Returns:
            (R,) int64, the box of each anchor, and (R,) int8 or int64: 1 where it is assigned to
            it, 0 for background, -1 for ignored.
        """
        # An anchor that is ignored must not be the best one of a box, or the box has none.
        return self.anchor_matcher(pairwise_iou(gt.gt_boxes, Boxes.cat(anchors)) * inside)

    def _inside(
        self, image_size: tuple[int, int], grid_sizes: list[tuple[int, int]], device: torch.device
    ) -> Tensor:
        """(R,) bool: anchors whose cell would exist were the image alone in its batch."""
        unit = max(self.size_divisibility, 1)
        height, width = (math.ceil(side / unit) * unit for side in image_size)
        inside = []
        for (rows, columns), stride, num_anchors in zip(
            grid_sizes,
            self.anchor_generator.strides,
            self.anchor_generator.num_anchors,
            strict=True,
        ):
            grid = torch.zeros(rows, columns, num_anchors, dtype=torch.bool, device=device)
            grid[: math.ceil(height / stride), : math.ceil(width / stride)] = True
            inside.append(grid.flatten())
        return torch.cat(inside)

    def inference(
        self,
        predictions: DensePredictions,
        anchors: list[Boxes],
        image_sizes: Sequence[tuple[int, int]],
        output_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Detections of each image, best first; arguments as of :meth:`find_candidates`."""
        candidates = self.find_candidates(predictions, anchors, image_sizes, output_sizes)
        return [self.select(found) for found in candidates]

    def find_candidates(
        self,
        predictions: DensePredictions,
        anchors: list[Boxes],
        image_sizes: Sequence[tuple[int, int]],
        output_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """The scored boxes of each image that NMS has not gone over.

        As in the authors' code, boxes are clipped to the image and brought to the output size
        before NMS.

        Args:
            predictions: see :meth:`forward`.
            anchors: anchors of each level.
            image_sizes: (height, width) of each image without padding.
            output_sizes: (height, width) that the boxes are scaled to.

        Returns:
            For each image ``pred_boxes``, ``scores`` and ``pred_classes``, one row for each class
            with which a box is over the score threshold.
        """
        return [
            self._find_candidates_single_image(
                [logits[n] for logits in predictions.logits],
                [deltas[n] for deltas in predictions.deltas],
                anchors,
                image_size,
                output_size,
            )
            for n, (image_size, output_size) in enumerate(
                zip(image_sizes, output_sizes, strict=True)
            )
        ]

    def _find_candidates_single_image(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        anchors: list[Boxes],
        image_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Instances:
        candidates = [
            self._decode_level(*level) for level in zip(logits, deltas, anchors, strict=True)
        ]
        boxes = torch.cat([boxes for boxes, _ in candidates])
        scores = torch.cat([scores for _, scores in candidates])
        # When training diverges or overflows, it is the loss that says so, not the clipping.
        finite = boxes.isfinite().all(dim=1)
        boxes, scores = Boxes(boxes[finite]), scores[finite]
        boxes.clip(image_size)
        boxes.scale(output_size[1] / image_size[1], output_size[0] / image_size[0])
        rows, classes = (scores > self.score_thresh).nonzero(as_tuple=True)
        return Instances(
            output_size,
            pred_boxes=boxes[rows],
            scores=scores[rows, classes],
            pred_classes=classes,
        )

    def select(self, candidates: Instances) -> Instances:
        """The detections of an image, best first: NMS, then the best, without empty boxes."""
        return select_detections(candidates, self.nms_thresh, self.max_detections)

    def _decode_level(
        self, logits: Tensor, deltas: Tensor, anchors: Boxes
    ) -> tuple[Tensor, Tensor]:
        """Boxes (n, 4) and scores (n, K) of the anchors with the highest class score."""
        anchor_boxes = anchors.tensor
        if torch.jit.is_tracing() or len(logits) > self.topk_candidates:
            top = indices_of_largest(logits.amax(dim=1), self.topk_candidates)
            logits, deltas, anchor_boxes = logits[top], deltas[top], anchor_boxes[top]
        return self.decode(deltas, anchor_boxes), logits.float().sigmoid()

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (n, 4) from deltas (n, 4) and anchors (n, 4).

        Detectron2's transform keeps a box from growing without bound; as in the authors' code it is
        kept from shrinking by the same factor.
        """
        transform = self.box2box_transform
        least = deltas.new_tensor(
            [-math.inf, -math.inf, *(-w * transform.scale_clamp for w in transform.weights[2:])]
        )
        return transform.apply_deltas(torch.maximum(deltas, least), anchors)
