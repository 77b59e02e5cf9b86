"""The thing branch: Mask R-CNN's mask head on the thing features at strides 8, 16 and 32.

Legend: R regions of interest over all images, K thing classes, M the side of a predicted mask (28).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances, ROIMasks, pairwise_iou
from torch import Tensor, nn

from .batched_painting import AT_A_TIME
from .layers import COCO_THINGS, scale_msra_fill
from .loss_normalizer import mean_over_processes
from .norms import norm_for_processes

REGIONS_AT_A_TIME_ON_CPU = 32
"""So that what a layer makes has less than the 32 MB that glibc keeps for the next layer: 100 masks
take 0.65 of the time of all at once, 800 masks a third (docs/PERFORMANCE.md)."""


class ThingHead(nn.Module):
    """RoIAlign, Mask R-CNN's layers, and what the masks are trained on.

    Args:
        mask_pooler: RoIAlign over the levels of the thing features.
        mask_head: Detectron2's mask head; only its layers are used.
        proposal_matcher: says which proposals are positive.
    """

    @configurable
    def __init__(
        self,
        *,
        mask_pooler: ROIPooler,
        mask_head: MaskRCNNConvUpsampleHead,
        proposal_matcher: Matcher,
    ):
        super().__init__()
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head
        self.proposal_matcher = proposal_matcher

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """``input_shape``: of the thing features, in the order of their strides."""
        head = cfg.MODEL.ROI_MASK_HEAD
        shapes = list(input_shape.values())
        pooler = ROIPooler(
            output_size=head.POOLER_RESOLUTION,
            scales=[1 / shape.stride for shape in shapes],
            sampling_ratio=head.POOLER_SAMPLING_RATIO,
            pooler_type=head.POOLER_TYPE,
            # Boxes below 112 pixels on the finest level, as in Mask R-CNN and in the authors' code:
            # of 224 on P5 where the finest level is P3, on P4 where it is P2.
            canonical_level=int(math.log2(shapes[0].stride)) + 2,
        )
        return {
            "mask_pooler": pooler,
            "mask_head": build_mask_head(
                channels=shapes[0].channels,
                size=head.POOLER_RESOLUTION,
                num_classes=cfg.MODEL.RETINANET.NUM_CLASSES,
                conv_dims=[head.CONV_DIM] * (head.NUM_CONV + 1),
                norm=norm_for_processes(head.NORM, cfg.MODEL.DEVICE),
            ),
            "proposal_matcher": Matcher([0.5], [0, 1]),
        }

    def forward(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        """Mask logits.

        Args:
            features: thing_1 of P3 to P5, each (N, C, H_i, W_i).
            boxes: boxes of each image, in pixels of the network's input.

        Returns:
            (R, K, M, M).
        """
        return self.mask_head.layers(self.mask_pooler(features, boxes))

    def predict(
        self, features: list[Tensor], boxes: list[Boxes], classes: list[Tensor]
    ) -> list[Tensor]:
        """Mask probabilities, (n, M, M) for the n boxes of each image, of the class of each box."""
        pooled = self.mask_pooler(features, boxes)
        parts: Iterable[tuple[Tensor, ...]] = [(pooled, torch.cat(classes))]
        # A trace would keep the number of parts, whatever the number of boxes.
        if pooled.device.type == "cpu" and not torch.jit.is_tracing():
            split = (x.split(REGIONS_AT_A_TIME_ON_CPU) for x in (pooled, torch.cat(classes)))
            parts = zip(*split, strict=True)
        logits = torch.cat([of_class(self.mask_head.layers(x), c) for x, c in parts])
        return list(logits.float().sigmoid().split([b.tensor.shape[0] for b in boxes]))

    @torch.no_grad()
    def sample(self, detections: list[Instances], gt_instances: list[Instances]) -> list[Instances]:
        """The regions that masks are trained on: ground truth and detections that meet it.

        "For thing prediction, we add the ground truth boxes to the proposals set and run the thing
        head for all proposals" (Sec. IV-B). All positives are used; a region learns the mask and
        the class of the ground truth it meets, whatever class was predicted.

        Args:
            detections: the current detections of each image, with ``pred_boxes``.
            gt_instances: ground truth of each image: ``gt_boxes``, ``gt_classes``, ``gt_masks``.

        Returns:
            For each image ``proposal_boxes``, ``gt_classes`` and ``gt_masks``.
        """
        regions = []
        for found, gt in zip(detections, gt_instances, strict=True):
            own = torch.arange(len(gt), device=gt.gt_boxes.device)
            matched, positive = self.proposal_matcher(pairwise_iou(gt.gt_boxes, found.pred_boxes))
            positive = positive == 1
            boxes = Boxes.cat([gt.gt_boxes, found.pred_boxes[positive]])
            which = torch.cat([own, matched[positive]])
            regions.append(
                Instances(
                    gt.image_size,
                    proposal_boxes=boxes,
                    gt_classes=gt.gt_classes[which],
                    gt_masks=gt.gt_masks[which],
                )
            )
        return regions

    def losses(self, features: list[Tensor], regions: list[Instances]) -> dict[str, Tensor]:
        """``loss_mask`` of what :meth:`sample` gave: the mean over regions and pixels."""
        logits = self(features, [r.proposal_boxes for r in regions])
        size = logits.shape[-1]
        targets = [r.gt_masks.crop_and_resize(r.proposal_boxes.tensor, size) for r in regions]
        classes = torch.cat([r.gt_classes for r in regions])
        loss = mask_loss(logits, classes, torch.cat(targets))
        return {"loss_mask": loss / mean_over_processes(len(logits), like=logits)}


def build_mask_head(
    *, channels: int, size: int, num_classes: int, conv_dims: Sequence[int], norm: str = ""
) -> MaskRCNNConvUpsampleHead:
    """Detectron2's mask head, started as in the authors' code.

    Args:
        channels: C of the thing features.
        size: side of the pooled regions, M / 2.
        num_classes: K.
        conv_dims: channels of each 3x3 convolution, then of the upsampling.
        norm: name of a norm of Detectron2 behind the convolutions; "": none.
    """
    head = MaskRCNNConvUpsampleHead(
        ShapeSpec(channels=channels, height=size, width=size),
        num_classes=num_classes,
        conv_dims=conv_dims,
        conv_norm=norm,
    )
    # Detectron2's N(0, 0.001) hardly lets a gradient through at first.
    weight_init.c2_msra_fill(head.predictor)
    scale_msra_fill(head.predictor, COCO_THINGS)
    return head


def paste_masks(probabilities: Tensor, instances: Instances) -> Tensor:
    """The masks of detections at the size of their image, as Detectron2's models give them.

    Args:
        probabilities: (n, M, M); a pixel of at least 0.5 belongs to the mask.
        instances: ``pred_boxes`` in pixels of the image.

    Returns:
        (n, H, W) bool.
    """
    boxes, size = instances.pred_boxes, instances.image_size
    if probabilities.is_cuda and not torch.jit.is_tracing():
        return paste_in_parts(probabilities, boxes, size)
    return ROIMasks(probabilities).to_bitmasks(boxes, *size).tensor


def paste_in_parts(probabilities: Tensor, boxes: Boxes, size: tuple[int, int]) -> Tensor:
    """As :func:`paste_masks`, with the probabilities of some masks at a time at the image's size.

    On CUDA Detectron2 samples all masks at once and needs 12 bytes for each pixel of each.
    """
    masks = torch.empty(len(probabilities), *size, dtype=torch.bool, device=probabilities.device)
    for start in range(0, len(masks), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        masks[part] = ROIMasks(probabilities[part]).to_bitmasks(boxes[part], *size).tensor
    return masks


def mask_loss(logits: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy on the channel of each region's class.

    Args:
        logits: (R, K, M, M).
        classes: (R,).
        targets: (R, M, M) bool.

    Returns:
        The sum over regions of the mean over pixels.
    """
    chosen = of_class(logits, classes)
    loss = F.binary_cross_entropy_with_logits(chosen, targets.to(chosen.dtype), reduction="none")
    return loss.mean(dim=(1, 2)).sum()


def of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """(R, M, M) of (R, K, M, M): the channel of each region's class."""
    return logits[torch.arange(logits.shape[0], device=logits.device), classes]
