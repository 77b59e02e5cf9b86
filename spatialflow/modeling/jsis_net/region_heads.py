"""The instance branch behind the proposals: region layers, then class, box and mask (Sec. 2.1).

Legend: N images, C channels of the features, R regions over all images, K thing classes, P the side
of the pooled regions (7), M = 4 P that of a predicted mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, cat
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, ROIHeads
from detectron2.structures import Boxes, Instances
from fvcore.nn import weight_init
from torch import Tensor, nn

from ..layers import COCO_THINGS, normalised_conv, scale_msra_fill
from ..loss_normalizer import mean_over_processes
from ..mask_head import REGIONS_AT_A_TIME_ON_CPU, mask_loss, of_class
from ..norms import norm_for_processes

UPSAMPLING = 4
"""M / P."""
EXPANSION = 4
"""Channels of a bottleneck's output to its width, as in ResNet."""


class MaskHead(nn.Module):
    """Mask logits: a 3x3 convolution, bilinear upsampling to M, another one, and a 1x1.

    *Reading*: the paper has no layers; these are of later code of its authors.

    Args:
        in_channels: of the region features.
        channels: of the two convolutions.
        num_classes: K.
        norm: of the two convolutions.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, norm: str):
        super().__init__()
        self.conv1 = normalised_conv(in_channels, channels, 3, norm, activation=F.relu)
        self.conv2 = normalised_conv(channels, channels, 3, norm, activation=F.relu)
        self.predictor = Conv2d(channels, num_classes, kernel_size=1)
        weight_init.c2_msra_fill(self.predictor)
        scale_msra_fill(self.predictor, COCO_THINGS)

    def forward(self, regions: Tensor) -> Tensor:
        """(R, K, M, M) from region features (R, C, P, P)."""
        coarse = self.conv1(regions)
        fine = F.interpolate(coarse, scale_factor=UPSAMPLING, mode="bilinear", align_corners=False)
        return self.predictor(self.conv2(fine))


class RegionHeads(ROIHeads):
    """RoIAlign, a stage of bottlenecks on each region, and the three heads in parallel.

    Args:
        pooler: RoIAlign on the features.
        layers: the region layers.
        box_predictor: class logits and box deltas from the mean over a region.
        mask_head: mask logits from a region.
        mask_loss_weight: lambda_5.
        kwargs: arguments of Detectron2's ROIHeads, which matches and samples.
    """

    @configurable
    def __init__(
        self,
        *,
        pooler: ROIPooler,
        layers: nn.Module,
        box_predictor: FastRCNNOutputLayers,
        mask_head: MaskHead,
        mask_loss_weight: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.pooler = pooler
        self.layers = layers
        self.box_predictor = box_predictor
        self.mask_head = mask_head
        self.mask_loss_weight = mask_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """``input_shape``: channels and stride of the features."""
        keys, box, mask = cfg.MODEL.JSIS_NET, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
        norm = norm_for_processes(keys.NORM, cfg.MODEL.DEVICE)
        channels = EXPANSION * keys.REGION_WIDTH
        pooler = ROIPooler(
            output_size=box.POOLER_RESOLUTION,
            scales=[1 / input_shape.stride],
            sampling_ratio=box.POOLER_SAMPLING_RATIO,
            pooler_type=box.POOLER_TYPE,
        )
        return {
            **super().from_config(cfg),
            "pooler": pooler,
            "layers": build_region_layers(input_shape.channels, keys.REGION_WIDTH, norm),
            "box_predictor": FastRCNNOutputLayers(cfg, ShapeSpec(channels=channels)),
            "mask_head": MaskHead(channels, mask.CONV_DIM, cfg.MODEL.ROI_HEADS.NUM_CLASSES, norm),
            "mask_loss_weight": keys.MASK_LOSS_WEIGHT,
        }

    def losses(
        self, features: Tensor, proposals: list[Instances], things: list[Instances]
    ) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_box_reg`` and ``loss_mask``, weighted (eq. 1).

        Args:
            features: (N, C, h, w).
            proposals: of each image, from the RPN.
            things: ground truth of each image: ``gt_boxes``, ``gt_classes`` and ``gt_masks``.
        """
        sampled = self.label_and_sample_proposals(proposals, things)
        regions = self.layers(self.pooler([features], [x.proposal_boxes for x in sampled]))
        losses = self.box_predictor.losses(self._predict(regions), sampled)
        classes = cat([x.gt_classes for x in sampled])
        positive = (classes >= 0) & (classes < self.num_classes)
        logits = self.mask_head(regions[positive])
        targets = _mask_targets(sampled, self.num_classes, logits.shape[-1])
        loss = mask_loss(logits, classes[positive], targets)
        mean = loss / mean_over_processes(len(logits), like=logits)
        return losses | {"loss_mask": self.mask_loss_weight * mean}

    def find_candidates(self, features: Tensor, proposals: list[Instances]) -> list[Instances]:
        """What passes the score threshold, before NMS, at the size of the network input.

        Args:
            features: (N, C, h, w).
            proposals: of each image, from the RPN.

        Returns:
            ``pred_boxes``, ``scores`` and ``pred_classes`` of each image.
        """
        pooled = self.pooler([features], [x.proposal_boxes for x in proposals])
        parts = _in_parts(lambda x: self._predict(self.layers(x)), pooled)
        predictions = tuple(torch.cat(x).float() for x in zip(*parts, strict=True))
        boxes = self.box_predictor.predict_boxes(predictions, proposals)
        probabilities = self.box_predictor.predict_probs(predictions, proposals)
        found = []
        for boxes_i, scores, proposal in zip(boxes, probabilities, proposals, strict=True):
            which, classes = (scores[:, :-1] > self.box_predictor.test_score_thresh).nonzero().T
            # Of class-agnostic boxes there is one for all classes.
            of_class = boxes_i.view(len(scores), -1, 4).expand(-1, self.num_classes, -1)
            instances = Instances(
                proposal.image_size,
                pred_boxes=Boxes(of_class[which, classes]),
                scores=scores[which, classes],
                pred_classes=classes,
            )
            instances.pred_boxes.clip(proposal.image_size)
            found.append(instances)
        return found

    def predict_masks(
        self, features: Tensor, boxes: list[Boxes], classes: list[Tensor]
    ) -> list[Tensor]:
        """Mask probabilities (n, M, M) for the n boxes of each image, of the class of each box.

        Args:
            features: (N, C, h, w).
            boxes: of each image, in pixels of the network input.
            classes: (n,) int64 of each image.
        """
        pooled = self.pooler([features], boxes)
        parts = _in_parts(lambda x: self.mask_head(self.layers(x)), pooled)
        logits = torch.cat(parts)
        chosen = of_class(logits, torch.cat(classes))
        return list(chosen.float().sigmoid().split([len(x) for x in boxes]))

    def _predict(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (R, K + 1) and box deltas of region features."""
        return self.box_predictor(regions.mean(dim=(2, 3)))


def build_region_layers(in_channels: int, width: int, norm: str) -> nn.Sequential:
    """ "The final layers of ResNet-50", on each region: three bottlenecks that keep the size.

    *Reading*: the trunk is all of ResNet-50, and these are new layers like its last.

    Args:
        in_channels: C.
        width: of a bottleneck; its output has four times as many channels.
        norm: of every convolution.
    """
    blocks = ResNet.make_stage(
        BottleneckBlock,
        3,
        in_channels=in_channels,
        out_channels=EXPANSION * width,
        bottleneck_channels=width,
        stride_per_block=[1, 1, 1],
        norm=norm,
    )
    return nn.Sequential(*blocks)


def _in_parts(run: Callable[[Tensor], Tensor | tuple], regions: Tensor) -> list:
    """What a function returns of the regions, in parts where that takes less memory."""
    # A trace would keep the number of parts, whatever the number of regions.
    if regions.device.type != "cpu" or torch.jit.is_tracing():
        return [run(regions)]
    return [run(x) for x in regions.split(REGIONS_AT_A_TIME_ON_CPU)]


def _mask_targets(sampled: list[Instances], num_classes: int, side: int) -> Tensor:
    """(R, M, M) bool: what the positive regions have of the masks they meet."""
    targets = [torch.zeros(0, side, side, dtype=torch.bool, device=sampled[0].gt_classes.device)]
    for regions in sampled:
        positive = regions[(regions.gt_classes >= 0) & (regions.gt_classes < num_classes)]
        if len(positive):
            masks = positive.gt_masks
            targets.append(masks.crop_and_resize(positive.proposal_boxes.tensor, side))
    return torch.cat(targets)
