"""SpatialFlow, the meta-architecture: the order in which data walks through the model.

    image -> backbone and FPN -> sub-networks and flows -> boxes, masks, stuff scores -> one map

Legend: N images, C channels, P3 to P7 the FPN levels, H x W the size of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from .backbone_model import BackboneModel
from .boxes import boxes_at
from .class_layers import train_only_class_layers
from .config_check import check_config
from .detection import DensePredictions, Detector
from .fused_subnets import FusedSubnetworks
from .gfl import GFLDetector
from .ground_truth import crowd_mask, gt_instances, target
from .mask_head import ThingHead
from .panoptic import HeuristicMerge, Merge
from .panoptic_model import ClassLogits, Sizes, StuffLabels
from .stuff_head import StuffHead
from .subnets import SubnetFeatures, Subnetworks

PYRAMID = ("p3", "p4", "p5", "p6", "p7")
"""What detection sees; things and stuff see those of SEGMENTATION_FEATURES."""

DETECTORS = {"RetinaNet": Detector, "GFL": GFLDetector}
"""The values of MODEL.SPATIALFLOW.DETECTOR."""


class DenseOutputs(NamedTuple):
    """What :meth:`SpatialFlow.dense` returns; ``stuff`` (N, S, h, w) is None without the branch."""

    features: SubnetFeatures
    predictions: DensePredictions
    stuff: Tensor | None


@META_ARCH_REGISTRY.register()
class SpatialFlow(BackboneModel):
    """A RetinaNet with four sub-networks, information flows, and a thing and a stuff branch.

    Args:
        backbone: gives p3 to p7, or p2 to p7 where things and stuff see P2.
        levels: names of the levels that the sub-networks run on.
        subnets: the sub-networks and the flows between them.
        detector: cls and reg heads.
        thing_head: None without the thing branch.
        stuff_head: None without the stuff branch.
        pixel_mean, pixel_std: of the channels of the input, in its order.
        merge: merge of things and stuff, if the model has both branches; None leaves the
            panoptic map out.
        class_layers_only: freeze what does not depend on the classes.
    """

    class_layers = (
        "detector.cls_score.",
        "thing_head.mask_head.predictor.",
        "stuff_head.predictor.",
    )
    class_counts = ("MODEL.RETINANET.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.NUM_CLASSES")

    subnets: Subnetworks | FusedSubnetworks

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        subnets: Subnetworks,
        detector: Detector,
        thing_head: ThingHead | None,
        stuff_head: StuffHead | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        merge: Merge | None = HeuristicMerge(),  # noqa: B008
        levels: Sequence[str] = PYRAMID,
        class_layers_only: bool = False,
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.levels = tuple(levels)
        self.subnets = subnets
        self.detector = detector
        self.thing_head = thing_head
        self.stuff_head = stuff_head
        self.nms_thresh = detector.nms_thresh
        self.predicts_masks, self.predicts_stuff = thing_head is not None, stuff_head is not None
        self.merge = merge if self.predicts_masks and self.predicts_stuff else None
        if class_layers_only:
            train_only_class_layers(self, self.class_layers)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """The parts from the keys of :mod:`spatialflow.config`.

        Raises:
            ValueError: see :func:`check_config`; or the backbone does not give the pyramid.
        """
        check_config(cfg, cls.class_counts)
        if cfg.MODEL.SPATIALFLOW.DETECTOR not in DETECTORS:
            raise ValueError(
                f"MODEL.SPATIALFLOW.DETECTOR is {cfg.MODEL.SPATIALFLOW.DETECTOR!r}; choose among "
                f"{', '.join(DETECTORS)}."
            )
        backbone = build_backbone(cfg)
        shapes = _pyramid_shapes(backbone, cfg.MODEL.BACKBONE.NAME)
        keys = cfg.MODEL.SPATIALFLOW
        segmentation_shapes = _segmentation_shapes(backbone, keys.SEGMENTATION_FEATURES)
        return {
            "backbone": backbone,
            "subnets": Subnetworks(cfg, shapes["p3"].channels),
            "detector": DETECTORS[keys.DETECTOR](
                cfg, list(shapes.values()), backbone.size_divisibility
            ),
            "thing_head": ThingHead(cfg, segmentation_shapes) if keys.THING_ON else None,
            "stuff_head": StuffHead(cfg, segmentation_shapes) if keys.STUFF_ON else None,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "merge": cls.build_merge(cfg),
            "levels": list(dict.fromkeys([*segmentation_shapes, *PYRAMID])),
            "class_layers_only": cfg.MODEL.CLASS_LAYERS.TRAIN_ONLY,
        }

    @classmethod
    def build_merge(cls, cfg: CfgNode) -> HeuristicMerge | None:
        """MODEL.PANOPTIC_FPN.COMBINE with the fills; None when it is not enabled."""
        boxes, rims = cfg.MODEL.SPATIALFLOW.BOX_FILL, cfg.MODEL.SPATIALFLOW.RIM_FILL
        return HeuristicMerge.from_config(
            cfg,
            box_fill_min_free=boxes.MIN_FREE if boxes.ENABLED else None,
            rim_fill_min_prob=rims.MIN_PROB if rims.ENABLED else None,
        )

    def losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """The terms of eq. (6), each already weighted.

        Args:
            batched_inputs: besides what :meth:`forward` needs ``instances`` (``gt_boxes``,
                ``gt_classes``, ``gt_masks`` as BitMasks or PolygonMasks), ``sem_seg`` (h, w)
                int64, and ``crowd_mask`` (h, w) bool if there are crowds.

        Returns:
            ``loss_cls``, ``loss_box_reg``, ``loss_mask`` and ``loss_sem_seg``, the last two where
            their branch is on.

        Raises:
            ValueError: an image lacks a target, see :mod:`spatialflow.modeling.ground_truth`.
        """
        images = self.preprocess_image(batched_inputs)
        things = [gt_instances(x, self.device, masks=self.predicts_masks) for x in batched_inputs]
        crowd_masks = [crowd_mask(x, self.device) for x in batched_inputs]
        features = self.extract_features(images.tensor)
        predictions = self.detector(features.cls, features.reg)
        anchors = self.detector.anchor_generator(features.cls)
        targets = self.detector.label_anchors(
            anchors, things, crowd_masks, [(x.shape[-2], x.shape[-1]) for x in features.cls]
        )
        losses = self.detector.losses(predictions, anchors, targets)
        if self.thing_head is not None:
            detections = self._detections_in_training(predictions, anchors, images)
            regions = self.thing_head.sample(detections, things)
            losses |= self.thing_head.losses(features.thing, regions)
        if self.stuff_head is not None:
            labels = [target(x, "sem_seg") for x in batched_inputs]
            padded = self.pad_labels(labels, self.stuff_head.ignore_value)
            losses |= self.stuff_head.losses(features.stuff, padded)
        return losses

    def extract_features(self, images: Tensor) -> SubnetFeatures:
        """Backbone, FPN, sub-networks and flows, of normalised images (N, 3, h, w)."""
        pyramid = self.backbone(images)
        return self.subnets([pyramid[name] for name in self.levels])

    def dense(self, images: Tensor) -> DenseOutputs:
        """Features of the sub-networks, class logits, box deltas and stuff scores."""
        features = self.extract_features(images)
        return DenseOutputs(
            features,
            self.detector(features.cls, features.reg),
            None if self.stuff_head is None else self.stuff_head(features.stuff),
        )

    def find_candidates(
        self, dense: DenseOutputs, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Instances]:
        """Boxes, scores and classes before NMS, see :class:`PanopticModel`."""
        anchors = self.detector.anchor_generator(dense.features.cls)
        return self.detector.find_candidates(dense.predictions, anchors, image_sizes, output_sizes)

    def select(self, candidates: Instances) -> Instances:
        """NMS, and the best of what is left."""
        return self.detector.select(candidates)

    def stuff_scores(
        self, dense: DenseOutputs, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Tensor]:
        """Stuff scores (S, H, W) of each image at its output size."""
        assert self.stuff_head is not None and dense.stuff is not None
        return [
            self.stuff_head.postprocess(*one)
            for one in zip(dense.stuff, image_sizes, output_sizes, strict=True)
        ]

    def stuff_labels(
        self, dense: DenseOutputs, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[StuffLabels]:
        """The best labels, without memory for the scores at the output size."""
        assert self.stuff_head is not None and dense.stuff is not None
        return [
            StuffLabels(self.stuff_head.postprocess_labels(scores, *sizes), len(scores))
            for scores, *sizes in zip(dense.stuff, image_sizes, output_sizes, strict=True)
        ]

    def mask_features(self, dense: DenseOutputs) -> list[Tensor]:
        """thing_1 of P3 to P5."""
        return dense.features.thing

    def predict_masks(
        self, features: list[Tensor], instances: list[Instances], image_sizes: Sizes
    ) -> list[Tensor]:
        """Mask probabilities (n, M, M) of the class of each box, see :class:`PanopticModel`."""
        assert self.thing_head is not None
        boxes = [boxes_at(*one) for one in zip(instances, image_sizes, strict=True)]
        return self.thing_head.predict(features, boxes, [i.pred_classes for i in instances])

    def fuse(self) -> None:
        """Compute the convolutions of the sub-networks that read the same feature as one."""
        if not isinstance(self.subnets, FusedSubnetworks):
            self.subnets = FusedSubnetworks(self.subnets)

    def class_logits(self) -> ClassLogits:
        """The cls head."""
        return ClassLogits(self.detector.cls_score, has_background=False)

    @torch.no_grad()
    def _detections_in_training(
        self, predictions: DensePredictions, anchors: list[Boxes], images: ImageList
    ) -> list[Instances]:
        """What the detector finds now, to train masks on (Sec. IV-B, NMS at 0.4)."""
        return self.detector.inference(predictions, anchors, images.image_sizes, images.image_sizes)


def _pyramid_shapes(backbone: Backbone, name: str) -> dict[str, ShapeSpec]:
    """Channels and stride of P3 to P7; ValueError if the backbone of this name lacks a level."""
    shapes = backbone.output_shape()
    channels = {level: shapes[level].channels for level in PYRAMID if level in shapes}
    if len(channels) < len(PYRAMID) or len(set(channels.values())) > 1:
        raise ValueError(
            f"MODEL.BACKBONE.NAME {name} gives {', '.join(shapes)}, of p3 to p7 with the channels "
            f"{channels}; SpatialFlow needs p3, p4, p5, p6 and p7, all with as many channels, "
            "which spatialflow.modeling.backbone.build_pyramid makes."
        )
    return {level: shapes[level] for level in PYRAMID}


def _segmentation_shapes(backbone: Backbone, names: Sequence[str]) -> dict[str, ShapeSpec]:
    """Channels and stride of the levels of things and stuff; ValueError where one is missing."""
    shapes = backbone.output_shape()
    if missing := [name for name in names if name not in shapes]:
        raise ValueError(
            f"MODEL.SPATIALFLOW.SEGMENTATION_FEATURES has {missing[0]}, but the backbone gives "
            f"{', '.join(shapes)}. For p2, MODEL.FPN.IN_FEATURES (of a ResNet: and "
            "MODEL.RESNETS.OUT_FEATURES) need the feature at stride 4, 'res2'; of timm's models "
            "MODEL.BACKBONE.NAME is build_timm_p2_p7_fpn_backbone then."
        )
    return {name: shapes[name] for name in names}
