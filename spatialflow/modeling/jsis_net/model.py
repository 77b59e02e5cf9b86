"""JSIS-Net, the meta-architecture (Fig. 2): one trunk, two branches that share nothing else.

    image -> ResNet at stride 8 -> 3x3 convolution -> RPN, region layers -> class, box, mask
                                                   -> pyramid pooling, deconvolution -> labels

Legend: N images, C channels of the shared features, S stuff labels, H x W the size of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import ImageList, Instances
from torch import Tensor

from ..backbone_model import BackboneModel
from ..boxes import boxes_at, select_detections
from ..class_layers import train_only_class_layers
from ..config_check import check_class_counts
from ..ground_truth import gt_instances, target
from ..layers import normalised_conv
from ..norms import norm_for_processes
from ..panoptic import Merge
from ..panoptic_model import ClassLogits, Sizes
from .labels import SemanticLabels
from .merge import PixelwiseMerge
from .region_heads import RegionHeads
from .semantic_head import SemanticHead


class JSISDense(NamedTuple):
    """The shared features (N, C, h, w), and the logits of the stuff labels (N, S, 2h, 2w)."""

    features: Tensor
    stuff: Tensor


@META_ARCH_REGISTRY.register()
class JSISNet(BackboneModel):
    """A semantic and an instance branch on the same features.

    Args:
        backbone: the trunk.
        reduction: from its last feature to the shared features. *Reading*: a 3x3 convolution to
            512 channels, of later code of the paper's authors.
        proposal_generator: the RPN.
        region_heads: what follows it.
        semantic_head: the semantic branch.
        labels: the labels of the semantic branch.
        pixel_mean, pixel_std: of the channels of the input, in its order.
        merge: merge of the branches; None leaves the panoptic map out.
        class_layers_only: freeze what does not depend on the classes.
    """

    class_layers = (
        "region_heads.box_predictor.",
        "region_heads.mask_head.predictor.",
        "semantic_head.predictor.",
        "semantic_head.deconv.",
    )
    class_counts = ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.NUM_CLASSES")

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        reduction: Conv2d,
        proposal_generator: RPN,
        region_heads: RegionHeads,
        semantic_head: SemanticHead,
        labels: SemanticLabels,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        merge: Merge | None,
        class_layers_only: bool = False,
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.reduction = reduction
        self.proposal_generator = proposal_generator
        self.region_heads = region_heads
        self.semantic_head = semantic_head
        self.labels = labels
        (self._feature,) = proposal_generator.in_features
        self.size_divisibility = backbone.output_shape()[self._feature].stride
        self.nms_thresh = region_heads.box_predictor.test_nms_thresh
        self.merge = merge
        if class_layers_only:
            train_only_class_layers(self, self.class_layers)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """The parts from MODEL.JSIS_NET and Detectron2's keys of an R-CNN with one feature.

        Raises:
            ValueError: a class count is not set; MODEL.RPN.IN_FEATURES has more than one name.
        """
        check_class_counts(cfg, cls.class_counts)
        keys, head = cfg.MODEL.JSIS_NET, cfg.MODEL.SEM_SEG_HEAD
        names = cfg.MODEL.RPN.IN_FEATURES
        if len(names) != 1:
            raise ValueError(
                f"MODEL.RPN.IN_FEATURES is {names}, but JSISNet has one feature; give ['res5']."
            )
        backbone = build_backbone(cfg)
        trunk = backbone.output_shape()[names[0]]
        shape = ShapeSpec(channels=keys.CHANNELS, stride=trunk.stride)
        norm = norm_for_processes(keys.NORM, cfg.MODEL.DEVICE)
        labels = SemanticLabels(
            cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            head.NUM_CLASSES,
            tuple(head.THING_LABELS),
            head.IGNORE_VALUE,
        )
        semantic_head = SemanticHead(
            channels=shape.channels,
            num_labels=len(labels),
            stride=shape.stride,
            norm=norm,
            loss_weight=head.LOSS_WEIGHT,
            ignore_value=head.IGNORE_VALUE,
        )
        return {
            "backbone": backbone,
            "reduction": normalised_conv(
                trunk.channels, shape.channels, 3, norm, activation=F.relu
            ),
            "proposal_generator": RPN(cfg, {names[0]: shape}),
            "region_heads": RegionHeads(cfg, shape),
            "semantic_head": semantic_head,
            "labels": labels,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "merge": cls.build_merge(cfg),
            "class_layers_only": cfg.MODEL.CLASS_LAYERS.TRAIN_ONLY,
        }

    @classmethod
    def build_merge(cls, cfg: CfgNode) -> PixelwiseMerge | None:
        """The paper's merge with MODEL.PANOPTIC_FPN.COMBINE; None when it is not enabled."""
        return PixelwiseMerge.from_config(cfg)

    def losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """The terms of the total loss but the L2 regularisation, each weighted (Sec. 2.1.1).

        Args:
            batched_inputs: besides what :meth:`forward` needs ``instances`` (``gt_boxes``,
                ``gt_classes``, ``gt_masks`` as BitMasks or PolygonMasks) and ``sem_seg`` (h, w)
                int64.

        Returns:
            ``loss_rpn_cls``, ``loss_rpn_loc``, ``loss_cls``, ``loss_box_reg``, ``loss_mask`` and
            ``loss_sem_seg``.

        Raises:
            ValueError: an image lacks a target, see :mod:`spatialflow.modeling.ground_truth`.
        """
        images = self.preprocess_image(batched_inputs)
        things = [gt_instances(x, self.device, masks=True) for x in batched_inputs]
        features = self.extract_features(images.tensor)
        proposals, losses = self.proposal_generator(images, {self._feature: features}, things)
        losses |= self.region_heads.losses(features, proposals, things)
        targets = [
            self.labels.targets(target(x, "sem_seg").to(self.device), found)
            for x, found in zip(batched_inputs, things, strict=True)
        ]
        padded = self.pad_labels(targets, self.labels.ignore)
        return losses | self.semantic_head.losses(features, padded)

    def extract_features(self, images: Tensor) -> Tensor:
        """The shared features (N, C, h, w) of normalised images (N, 3, H, W)."""
        return self.reduction(self.backbone(images)[self._feature])

    def dense(self, images: Tensor) -> JSISDense:
        """The shared features and the semantic branch."""
        features = self.extract_features(images)
        return JSISDense(features, self.labels.fold(self.semantic_head(features)))

    def find_candidates(
        self, dense: JSISDense, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Instances]:
        """The classified regions of the RPN before NMS, see :class:`PanopticModel`."""
        images = ImageList(dense.features, list(image_sizes))  # the RPN reads the sizes alone
        proposals, _ = self.proposal_generator(images, {self._feature: dense.features}, None)
        found = self.region_heads.find_candidates(dense.features, proposals)
        return [
            Instances(size, **{**x.get_fields(), "pred_boxes": boxes_at(x, size)})
            for x, size in zip(found, output_sizes, strict=True)
        ]

    def select(self, candidates: Instances) -> Instances:
        """NMS, and the best of what is left."""
        limit = self.region_heads.box_predictor.test_topk_per_image
        return select_detections(candidates, self.nms_thresh, limit)

    def stuff_scores(
        self, dense: JSISDense, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Tensor]:
        """Stuff scores (S, H, W) of each image at its output size."""
        return [
            sem_seg_postprocess(scores, image_size, *output_size)
            for scores, image_size, output_size in zip(
                self.semantic_head.upsample(dense.stuff), image_sizes, output_sizes, strict=True
            )
        ]

    def mask_features(self, dense: JSISDense) -> Tensor:
        """The shared features."""
        return dense.features

    def predict_masks(
        self, features: Tensor, instances: list[Instances], image_sizes: Sizes
    ) -> list[Tensor]:
        """Mask probabilities (n, M, M) of the class of each box, see :class:`PanopticModel`."""
        boxes = [boxes_at(*one) for one in zip(instances, image_sizes, strict=True)]
        return self.region_heads.predict_masks(features, boxes, [x.pred_classes for x in instances])

    def class_logits(self) -> ClassLogits:
        """The classification of regions."""
        return ClassLogits(self.region_heads.box_predictor.cls_score, has_background=True)
