"""Adapters: Detectron2's Mask R-CNN, Cascade Mask R-CNN and Panoptic FPN as panoptic models.

Legend: see :mod:`.panoptic_model`.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, PanopticFPN
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from .adapters import register_adapter
from .boxes import boxes_at
from .panoptic import HeuristicMerge
from .panoptic_model import ClassLogits, PanopticModel, Sizes


class RCNNDense(NamedTuple):
    """The feature pyramid by level, and the stuff scores (N, S, h, w) or None."""

    pyramid: dict[str, Tensor]
    stuff: Tensor | None


@register_adapter(GeneralizedRCNN)
class RCNNModel(PanopticModel):
    """A GeneralizedRCNN of Detectron2 in the steps of this project.

    Its candidates are what its own NMS leaves.

    Args:
        model: the model; training and checkpoints are its own.
        cfg: the config that it was built from.

    Raises:
        ValueError: ROI heads that do not separate boxes and masks.
    """

    predicts_stuff = False
    class_layers: ClassVar[tuple[str, ...]] = (
        "roi_heads.box_predictor.",
        "roi_heads.mask_head.predictor.",
    )
    class_counts: ClassVar[tuple[str, ...]] = ("MODEL.ROI_HEADS.NUM_CLASSES",)

    def __init__(self, model: GeneralizedRCNN, cfg: CfgNode):
        super().__init__()
        heads = model.roi_heads
        if not isinstance(heads, StandardROIHeads):
            raise ValueError(
                f"{type(model).__name__} with {type(heads).__name__} cannot be evaluated here: "
                "masks are asked for after boxes, which StandardROIHeads and CascadeROIHeads can."
            )
        self.model = model
        self.predicts_masks = heads.mask_on
        self.nms_thresh = self._box_predictor.test_nms_thresh
        self.size_divisibility = model.backbone.size_divisibility

    @classmethod
    def build_merge(cls, cfg: CfgNode) -> HeuristicMerge | None:
        """None: there is no stuff to merge with."""
        return None

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """See :class:`PanopticModel`."""
        return self.model.preprocess_image(batched_inputs)

    def dense(self, images: Tensor) -> RCNNDense:
        """Backbone and FPN."""
        return RCNNDense(self.model.backbone(images), None)

    def find_candidates(
        self, dense: RCNNDense, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Instances]:
        """The detections of the RPN and the box head, at the output size."""
        return detect_regions(
            self.model.proposal_generator,
            self.model.roi_heads,
            dense.pyramid,
            image_sizes,
            output_sizes,
        )

    def mask_features(self, dense: RCNNDense) -> dict[str, Tensor]:
        """The levels that masks are predicted from."""
        return {name: dense.pyramid[name] for name in self.model.roi_heads.mask_in_features}

    def predict_masks(
        self, features: dict[str, Tensor], instances: list[Instances], image_sizes: Sizes
    ) -> list[Tensor]:
        """See :class:`PanopticModel`."""
        return region_masks(self.model.roi_heads, features, instances, image_sizes)

    def class_logits(self) -> ClassLogits:
        """See :class:`PanopticModel`."""
        return ClassLogits(self._box_predictor.cls_score, has_background=True)

    @property
    def _box_predictor(self) -> Any:
        """The box predictor; of Cascade R-CNN, that of the last step."""
        predictor = self.model.roi_heads.box_predictor
        return predictor[-1] if isinstance(predictor, nn.ModuleList) else predictor


@register_adapter(PanopticFPN)
class PanopticFPNModel(RCNNModel):
    """Detectron2's Panoptic FPN in the steps of this project.

    Its merge is the paper's (Kirillov et al., CVPR 2019, Sec. 3.2) with the model's own thresholds.
    Where Detectron2's leaves out label 0, this one leaves out the labels of things that the config
    names: on Cityscapes label 0 is road.
    """

    predicts_stuff = True
    class_layers: ClassVar[tuple[str, ...]] = (*RCNNModel.class_layers, "sem_seg_head.predictor.")
    class_counts: ClassVar[tuple[str, ...]] = (
        *RCNNModel.class_counts,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    )

    def __init__(self, model: PanopticFPN, cfg: CfgNode):
        super().__init__(model, cfg)
        if self.predicts_masks:
            self.merge = self.build_merge(cfg)

    @classmethod
    def build_merge(cls, cfg: CfgNode) -> HeuristicMerge | None:
        """MODEL.PANOPTIC_FPN.COMBINE without a box fill; None when it is not enabled."""
        return HeuristicMerge.from_config(cfg)

    def dense(self, images: Tensor) -> RCNNDense:
        """Backbone, FPN and the semantic head."""
        pyramid = self.model.backbone(images)
        scores, _ = self.model.sem_seg_head(pyramid, None)
        return RCNNDense(pyramid, scores)

    def stuff_scores(
        self, dense: RCNNDense, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Tensor]:
        """See :class:`PanopticModel`."""
        assert dense.stuff is not None
        return [
            sem_seg_postprocess(scores, image_size, *output_size)
            for scores, image_size, output_size in zip(
                dense.stuff, image_sizes, output_sizes, strict=True
            )
        ]


def detect_regions(
    proposal_generator: nn.Module,
    roi_heads: StandardROIHeads,
    features: dict[str, Tensor],
    image_sizes: Sizes,
    output_sizes: Sizes,
) -> list[Instances]:
    """The detections of an RPN and region heads, without masks, at the output size.

    Args:
        proposal_generator, roi_heads: in evaluation mode.
        features: what they read, by name.
        image_sizes, output_sizes: see :meth:`PanopticModel.find_candidates`.
    """
    # The proposal generator reads the sizes alone.
    images = ImageList(next(iter(features.values())), list(image_sizes))
    proposals, _ = proposal_generator(images, features, None)
    # Detectron2's own seam between boxes and masks, which subclasses override as well.
    found = roi_heads._forward_box(features, proposals)
    return [
        detector_postprocess(instances, *size)
        for instances, size in zip(found, output_sizes, strict=True)
    ]


def region_masks(
    roi_heads: StandardROIHeads,
    features: dict[str, Tensor],
    instances: list[Instances],
    image_sizes: Sizes,
) -> list[Tensor]:
    """Mask probabilities by region heads; see :meth:`PanopticModel.predict_masks`."""
    scaled = [
        Instances(size, pred_boxes=boxes_at(found, size), pred_classes=found.pred_classes)
        for found, size in zip(instances, image_sizes, strict=True)
    ]
    results = roi_heads.forward_with_given_boxes(features, scaled)
    return [torch.squeeze(r.pred_masks, dim=1) for r in results]
