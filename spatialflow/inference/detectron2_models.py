"""Detectron2's Mask R-CNN, Cascade Mask R-CNN and Panoptic FPN in the stages of this project."""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.modeling import GeneralizedRCNN, PanopticFPN
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from .stages import Sizes


class RCNNFeatures(NamedTuple):
    """The feature pyramid, and the images, of which the proposals need the sizes."""

    images: ImageList
    pyramid: dict[str, Tensor]


class RCNNStages(nn.Module):
    """The stages (see :class:`.stages.Stages`) of a model of Detectron2.

    Its candidates are what its own NMS leaves.

    Args:
        model: a GeneralizedRCNN or PanopticFPN.

    Raises:
        ValueError: a model of another kind, or with ROI heads that have no separate stages.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        heads = getattr(model, "roi_heads", None)
        if not isinstance(model, GeneralizedRCNN) or not isinstance(heads, StandardROIHeads):
            raise ValueError(
                f"{type(model).__name__} with {type(heads).__name__} cannot be a member: give "
                "SpatialFlow, or a PanopticFPN or GeneralizedRCNN of Detectron2 with "
                "StandardROIHeads or CascadeROIHeads."
            )
        self.model = model
        self.predicts_masks = heads.mask_on
        self.predicts_stuff = isinstance(model, PanopticFPN)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise and pad."""
        return self.model.preprocess_image(batched_inputs)

    def extract_features(self, images: ImageList) -> RCNNFeatures:
        """Backbone and FPN."""
        return RCNNFeatures(images, self.model.backbone(images.tensor))

    def find_candidates(
        self, features: RCNNFeatures, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Instances]:
        """The detections, at the output size."""
        proposals, _ = self.model.proposal_generator(features.images, features.pyramid, None)
        # Detectron2's own seam between boxes and masks, which subclasses override as well.
        found = self.model.roi_heads._forward_box(features.pyramid, proposals)
        return [
            detector_postprocess(instances, *size)
            for instances, size in zip(found, output_sizes, strict=True)
        ]

    def stuff_scores(
        self, features: RCNNFeatures, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Tensor]:
        """Panoptic FPN's semantic scores at the output size."""
        scores, _ = self.model.sem_seg_head(features.pyramid, None)
        return [
            sem_seg_postprocess(scores_i, image_size, *output_size)
            for scores_i, image_size, output_size in zip(
                scores, image_sizes, output_sizes, strict=True
            )
        ]

    def mask_features(self, features: RCNNFeatures) -> RCNNFeatures:
        """The levels that masks are predicted from."""
        levels = self.model.roi_heads.mask_in_features
        return features._replace(pyramid={name: features.pyramid[name] for name in levels})

    def predict_masks(
        self, features: RCNNFeatures, instances: list[Instances], image_sizes: Sizes
    ) -> list[Tensor]:
        """Mask probabilities (n, M, M) of the class of each box."""
        scaled = []
        for found, (height, width) in zip(instances, image_sizes, strict=True):
            boxes = found.pred_boxes.clone()
            boxes.scale(width / found.image_size[1], height / found.image_size[0])
            scaled.append(
                Instances((height, width), pred_boxes=boxes, pred_classes=found.pred_classes)
            )
        results = self.model.roi_heads.forward_with_given_boxes(features.pyramid, scaled)
        return [torch.squeeze(r.pred_masks, dim=1) for r in results]
