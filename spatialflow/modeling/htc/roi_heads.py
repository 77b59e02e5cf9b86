"""HTC's region heads: boxes and masks in turn, stage by stage (Sec. 3.1, 3.3).

    proposals -> box head 1 -> refined boxes -> mask head 1
                                  |                 | mask information flow
                                  v                 v
                              box head 2 -> ... -> mask head 2 -> ...

Every head reads RoIAlign of the pyramid plus RoIAlign of the semantic branch's embedding, which is
in the dict of features under :data:`SEMANTIC` (Sec. 3.2).

Legend: R regions over all images, K thing classes, m the side of a region's mask features, M the
side of a predicted mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, select_foreground_proposals
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..loss_normalizer import mean_over_processes
from ..mask_head import mask_loss, of_class
from .mask_head import HTCMaskHead

SEMANTIC = "semantic"
"""Name of the embedding among the features."""

Features = dict[str, Tensor]
BoxPredictions = tuple[Tensor, Tensor]
"""Class logits (R, K + 1), and class-agnostic deltas (R, 4)."""


@ROI_HEADS_REGISTRY.register()
class HTCROIHeads(CascadeROIHeads):
    """Detectron2's Cascade R-CNN with a mask head a stage, and HTC's three flows of information.

    Args:
        semantic_pooler: RoIAlign of the embedding, at the mask heads' resolution.
        semantic_fusion: which heads read the embedding: any of "box" and "mask".
        interleaved: mask head t is trained on the boxes that box head t refined, not on those it
            started from.
        mask_flow: mask head t reads the features of mask head t - 1.
        stage_loss_weights: alpha of each stage (Sec. 3.3).
        kwargs: other arguments of ``CascadeROIHeads``; ``mask_head`` is the list of the heads.

    Raises:
        ValueError: a name in ``semantic_fusion`` that there is not; another number of weights than
            stages.
    """

    @configurable
    def __init__(
        self,
        *,
        semantic_pooler: ROIPooler,
        semantic_fusion: Sequence[str],
        interleaved: bool,
        mask_flow: bool,
        stage_loss_weights: Sequence[float],
        mask_head: Sequence[HTCMaskHead] = (),
        **kwargs: object,
    ):
        super().__init__(mask_head=nn.ModuleList(mask_head), **kwargs)
        if not set(semantic_fusion) <= {"box", "mask"}:
            raise ValueError(
                f"MODEL.HTC.SEMANTIC_FUSION is {list(semantic_fusion)}; give any of 'box', 'mask'."
            )
        if len(stage_loss_weights) != self.num_cascade_stages:
            raise ValueError(
                f"MODEL.HTC.STAGE_LOSS_WEIGHTS is {list(stage_loss_weights)}, but "
                f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS has {self.num_cascade_stages} stages; give one "
                "weight a stage."
            )
        self.semantic_pooler = semantic_pooler
        self.semantic_fusion = tuple(semantic_fusion)
        self.interleaved, self.mask_flow = interleaved, mask_flow
        self.stage_loss_weights = tuple(stage_loss_weights)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """``MODEL.ROI_*`` as Detectron2's, and ``MODEL.HTC``."""
        head, keys = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.HTC
        return super().from_config(cfg, input_shape) | {
            "semantic_pooler": ROIPooler(
                output_size=head.POOLER_RESOLUTION,
                scales=[1 / cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE],
                sampling_ratio=head.POOLER_SAMPLING_RATIO,
                pooler_type=head.POOLER_TYPE,
            ),
            "semantic_fusion": keys.SEMANTIC_FUSION,
            "interleaved": keys.INTERLEAVED,
            "mask_flow": keys.MASK_FLOW,
            "stage_loss_weights": keys.STAGE_LOSS_WEIGHTS,
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Detectron2's pooler, and a head a stage; the first has no weights for a flow."""
        parts = super()._init_mask_head(cfg, input_shape)
        if not parts:
            return {}
        size = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        channels = input_shape[parts["mask_in_features"][0]].channels
        shape = ShapeSpec(channels=channels, height=size, width=size)
        later = [
            HTCMaskHead(cfg, shape, with_flow=cfg.MODEL.HTC.MASK_FLOW)
            for _ in cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS[1:]
        ]
        return parts | {"mask_head": [parts["mask_head"], *later]}

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As Detectron2's region heads; in training the losses of all stages.

        Args:
            images: not read.
            features: levels of the pyramid by name, and the embedding.
            proposals: of the RPN, for each image.
            targets: in training the ground truth of each image: ``gt_boxes``, ``gt_classes`` and
                ``gt_masks``.

        Returns:
            The boxes of the last stage or, in evaluation, the detections; and the losses.
        """
        if not self.training:
            return super().forward(images, features, proposals)
        assert targets is not None
        losses: dict[str, Tensor] = {}
        for stage, weight in enumerate(self.stage_loss_weights):
            with get_event_storage().name_scope(f"stage{stage}"):
                stage_losses, proposals = self._train_stage(features, proposals, targets, stage)
            losses |= {f"{name}_stage{stage}": weight * x for name, x in stage_losses.items()}
        return proposals, losses

    def _train_stage(
        self, features: Features, proposals: list[Instances], targets: list[Instances], stage: int
    ) -> tuple[dict[str, Tensor], list[Instances]]:
        """The losses of a stage without its weight, and its refined boxes."""
        sampled = self._sample(proposals, targets, stage)
        predictor = self.box_predictor[stage]
        predictions = self._run_stage(features, sampled, stage)
        losses = predictor.losses(predictions, sampled)
        refined = self._refined(predictor.predict_boxes(predictions, sampled), sampled)
        if self.mask_on:
            # "Interleaved execution": the mask branch takes the updated boxes.
            regions = self._sample(refined, targets, stage) if self.interleaved else sampled
            regions, _ = select_foreground_proposals(regions, self.num_classes)
            losses["loss_mask"] = self._mask_loss(features, regions, stage)
        return losses, refined

    def _sample(
        self, proposals: list[Instances], targets: list[Instances], stage: int
    ) -> list[Instances]:
        """Ground truth added, matched at the stage's IoU, sampled, as in the authors' code."""
        self.proposal_matcher = self.proposal_matchers[stage]
        return self.label_and_sample_proposals(proposals, targets)

    def _refined(self, boxes: Sequence[Tensor], sampled: list[Instances]) -> list[Instances]:
        """The predicted boxes but those of the ground truth, which every sampling adds itself."""
        kept = []
        for boxes_i, regions in zip(boxes, sampled, strict=True):
            if regions.has("gt_boxes"):
                truth = (regions.proposal_boxes.tensor == regions.gt_boxes.tensor).all(dim=1)
                boxes_i = boxes_i[~(truth & (regions.gt_classes < self.num_classes))]
            kept.append(boxes_i)
        refined = self._create_proposals_from_boxes(kept, [x.image_size for x in sampled])
        for proposals in refined:
            # Detectron2 gives ground truth that it adds a score, so the others need one.
            proposals.objectness_logits = proposals.proposal_boxes.tensor.new_zeros(len(proposals))
        return refined

    def _forward_box(
        self, features: Features, proposals: list[Instances], targets: None = None
    ) -> list[Instances]:
        """Detections: boxes of the last stage, scores of the stages' mean logits."""
        sizes = [x.image_size for x in proposals]
        logits: list[Tensor] = []
        boxes: Sequence[Tensor] = ()
        for stage, predictor in enumerate(self.box_predictor):
            if stage:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
            scores, deltas = self._run_stage(features, proposals, stage)
            boxes = predictor.predict_boxes((scores, deltas), proposals)
            logits.append(scores)
        mean = torch.stack(logits).mean(dim=0)
        found, _ = fast_rcnn_inference(
            boxes,
            predictor.predict_probs((mean, deltas), proposals),
            sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return found

    def _run_stage(
        self, features: Features, proposals: list[Instances], stage: int
    ) -> BoxPredictions:
        """The box head of a stage; as in the authors' code the loss weights alone balance it."""
        boxes = [x.proposal_boxes for x in proposals]
        pooled = self.box_pooler([features[f] for f in self.box_in_features], boxes)
        if "box" in self.semantic_fusion:
            semantic = self.semantic_pooler([features[SEMANTIC]], boxes)
            pooled = pooled + F.adaptive_avg_pool2d(semantic, pooled.shape[-2:])
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _pool_masks(self, features: Features, boxes: list[Boxes]) -> Tensor:
        """(R, C, m, m): what the mask heads read."""
        pooled = self.mask_pooler([features[f] for f in self.mask_in_features], boxes)
        if "mask" in self.semantic_fusion:
            pooled = pooled + self.semantic_pooler([features[SEMANTIC]], boxes)
        return pooled

    def _mask_features(self, pooled: Tensor, heads: Sequence[HTCMaskHead]) -> list[Tensor]:
        """What mask heads make of regions, with the flow from each to the next."""
        made: list[Tensor] = []
        for head in heads:
            previous = made[-1] if made and self.mask_flow else None
            made.append(head.features(pooled, previous))
        return made

    def _mask_loss(self, features: Features, regions: list[Instances], stage: int) -> Tensor:
        """The mean over foreground regions of the mask loss of a stage.

        With the flow, the heads before it run on this stage's regions and are trained by it too.
        """
        pooled = self._pool_masks(features, [x.proposal_boxes for x in regions])
        heads = self.mask_head[0 if self.mask_flow else stage : stage + 1]
        logits = heads[-1].logits(self._mask_features(pooled, heads)[-1])
        size = logits.shape[-1]
        targets = [
            x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, size) for x in regions if len(x)
        ]
        count = mean_over_processes(len(logits), like=logits)
        if not targets:
            return logits.sum() * 0  # so that every process has a gradient of every weight
        classes = torch.cat([x.gt_classes for x in regions])
        return mask_loss(logits, classes, torch.cat(targets)) / count

    def _forward_mask(self, features: Features, instances: list[Instances]) -> list[Instances]:
        """Set ``pred_masks`` (n, 1, M, M): the mean of the stages' probabilities."""
        if not self.mask_on:
            return instances
        pooled = self._pool_masks(features, [x.pred_boxes for x in instances])
        made = self._mask_features(pooled, self.mask_head)
        classes = torch.cat([x.pred_classes for x in instances])
        stages = [
            of_class(head.logits(x), classes).sigmoid()
            for head, x in zip(self.mask_head, made, strict=True)
        ]
        masks = torch.stack(stages).mean(dim=0)[:, None]
        for found, masks_i in zip(instances, masks.split([len(x) for x in instances]), strict=True):
            found.pred_masks = masks_i
        return instances
