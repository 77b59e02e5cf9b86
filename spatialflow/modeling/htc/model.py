"""Hybrid Task Cascade (Chen et al., CVPR 2019), the meta-architecture.

    image -> backbone and FPN -> semantic branch -> its embedding beside the pyramid's levels
                              -> RPN -> region heads in stages: boxes, then masks

With the stuff labels of the dataset in its semantic branch it is a panoptic model, which merges as
Panoptic FPN does (Kirillov et al., CVPR 2019, Sec. 3.2); that use is this project's. With
COCO-stuff's 183 labels, as in the authors' weights, the branch only helps the others, and the model
predicts boxes and masks: the third member of the SpatialFlow report's ensemble (Sec. 2.4).

The equations are the paper's; what it leaves open follows the authors' code, mmdetection: levels
resized before their 1x1 convolution, the embedding averaged to the box heads' size, ground truth
added and sampled anew for every head, beta 0.2, stages' logits and mask probabilities averaged.

Legend: see :mod:`..panoptic_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode, configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_backbone,
    build_proposal_generator,
    build_roi_heads,
)
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Instances
from torch import Tensor, nn

from ..backbone_model import BackboneModel
from ..class_layers import train_only_class_layers
from ..config_check import check_class_counts
from ..ground_truth import gt_instances, target
from ..panoptic import Merge
from ..panoptic_model import ClassLogits, Sizes
from ..rcnn import detect_regions, region_masks
from .roi_heads import SEMANTIC, HTCROIHeads
from .semantic_head import FusedSemanticHead

STAGES = range(3)


class HTCDense(NamedTuple):
    """The levels of the pyramid by name and the embedding, and the semantic scores (N, S, h, w)."""

    features: dict[str, Tensor]
    scores: Tensor


@META_ARCH_REGISTRY.register()
class HybridTaskCascade(BackboneModel):
    """A Cascade Mask R-CNN with interleaved stages, flows between masks, and a semantic branch.

    Args:
        backbone: gives p2 to p6.
        proposal_generator: Detectron2's RPN.
        roi_heads: the stages.
        semantic_head: the semantic branch.
        pixel_mean, pixel_std: of the channels of the input, in its order.
        predicts_stuff: whether the labels of the semantic branch are the dataset's stuff.
        merge: merge of things and stuff, if both are predicted; None leaves the map out.
        class_layers_only: freeze what does not depend on the classes.
    """

    class_layers = (
        "roi_heads.box_predictor.",
        *(f"roi_heads.mask_head.{stage}.predictor." for stage in STAGES),
        "semantic_head.predictor.",
    )
    class_counts = ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.NUM_CLASSES")

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        roi_heads: HTCROIHeads,
        semantic_head: FusedSemanticHead,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        predicts_stuff: bool = True,
        merge: Merge | None = None,
        class_layers_only: bool = False,
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.semantic_head = semantic_head
        self.nms_thresh = roi_heads.box_predictor[-1].test_nms_thresh
        self.predicts_masks, self.predicts_stuff = roi_heads.mask_on, predicts_stuff
        self.merge = merge if self.predicts_masks and predicts_stuff else None
        if class_layers_only:
            train_only_class_layers(self, self.class_layers)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """The parts from Detectron2's keys and ``MODEL.HTC``.

        Raises:
            ValueError: a class count is not set.
        """
        panoptic = cfg.MODEL.HTC.COCO_STUFF_LABELS == 0
        check_class_counts(cfg, cls.class_counts if panoptic else cls.class_counts[:1])
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes),
            "semantic_head": FusedSemanticHead(cfg, shapes),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "predicts_stuff": panoptic,
            "merge": cls.build_merge(cfg),
            "class_layers_only": cfg.MODEL.CLASS_LAYERS.TRAIN_ONLY,
        }

    def losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """The RPN's terms, alpha (box + mask) of each stage, and beta times the semantic loss.

        Args:
            batched_inputs: besides what :meth:`forward` needs ``instances`` (``gt_boxes``,
                ``gt_classes``, ``gt_masks``) and ``sem_seg`` (h, w) int64.

        Returns:
            ``loss_rpn_cls``, ``loss_rpn_loc``, ``loss_sem_seg`` and, for each stage t,
            ``loss_cls_stage<t>``, ``loss_box_reg_stage<t>`` and ``loss_mask_stage<t>``.

        Raises:
            ValueError: an image lacks a target, see :mod:`spatialflow.modeling.ground_truth`.
        """
        images = self.preprocess_image(batched_inputs)
        things = [gt_instances(x, self.device, masks=self.predicts_masks) for x in batched_inputs]
        targets = [target(x, "sem_seg") for x in batched_inputs]
        labels = self.pad_labels(targets, self.semantic_head.ignore_value)
        dense = self.dense(images.tensor)
        proposals, losses = self.proposal_generator(images, dense.features, things)
        _, region_losses = self.roi_heads(images, dense.features, proposals, things)
        return losses | region_losses | self.semantic_head.losses(dense.scores, labels)

    def dense(self, images: Tensor) -> HTCDense:
        """Backbone, FPN and the semantic branch."""
        features = dict(self.backbone(images))
        semantic = self.semantic_head(features)
        if semantic.embedding is not None:
            features[SEMANTIC] = semantic.embedding
        return HTCDense(features, semantic.scores)

    def find_candidates(
        self, dense: HTCDense, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Instances]:
        """The detections of the last stage, whose own NMS is the selection."""
        return detect_regions(
            self.proposal_generator, self.roi_heads, dense.features, image_sizes, output_sizes
        )

    def stuff_scores(
        self, dense: HTCDense, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Tensor]:
        """Stuff scores (S, H, W) of each image at its output size."""
        return [
            sem_seg_postprocess(self.semantic_head.upsample(scores[None])[0], image_size, *size)
            for scores, image_size, size in zip(
                dense.scores, image_sizes, output_sizes, strict=True
            )
        ]

    def mask_features(self, dense: HTCDense) -> dict[str, Tensor]:
        """The levels that masks are predicted from, and the embedding."""
        wanted = {*self.roi_heads.mask_in_features, SEMANTIC}
        return {name: x for name, x in dense.features.items() if name in wanted}

    def predict_masks(
        self, features: dict[str, Tensor], instances: list[Instances], image_sizes: Sizes
    ) -> list[Tensor]:
        """Mask probabilities (n, M, M) of the class of each box, see :class:`PanopticModel`."""
        return region_masks(self.roi_heads, features, instances, image_sizes)

    def class_logits(self) -> ClassLogits:
        """The class logits of the last stage, which are averaged with the others'."""
        predictors = self.roi_heads.box_predictor
        return ClassLogits(predictors[-1].cls_score, has_background=True, share=1 / len(predictors))
