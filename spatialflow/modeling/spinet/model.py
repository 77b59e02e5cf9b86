"""SPINet, the meta-architecture (Fig. 2): filters of things and stuff on one panoptic feature.

    image -> backbone and FPN -> class scores and filters of things   -> single-shot -> one map
                              -> panoptic feature, filters of stuff      convolution

Legend: N images, D channels of the panoptic feature, h x w its size (stride 4), K thing classes,
S stuff labels, n things of an image. Locations: see :mod:`.filter_sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from ..backbone_model import BackboneModel
from ..boxes import boxes_at
from ..class_layers import train_only_class_layers
from ..config_check import check_class_counts
from ..panoptic import Merge
from ..panoptic_model import ClassLogits, Sizes
from .auxiliary import InterClassContours, IntraClassTriplets
from .build import build_parts
from .criterion import Criterion, image_targets
from .dense_masks import DenseMasks, mask_nms, upsample
from .filter_sampling import FilterMaps, FilterSampling, single_shot_convolution
from .locations import central_locations, find_peaks
from .panoptic_feature import PanopticFeature

GIVEN_BOX_IOU = 0.5
"""IoU from which a box that is asked for is taken for one of the model's own things."""
GIVEN_BOX_SIDE = 112
"""Side of the masks in boxes that are asked for, four times Mask R-CNN's."""


class DenseOutputs(NamedTuple):
    """What :meth:`SPINet.dense` returns.

    Attributes:
        feature: (N, D, h, w), the panoptic feature, that of things where there are two.
        stuff: (N, S, h, w) logits; empty where they are not needed any more.
        logits: (N, K, H_l, W_l) of each level.
        filters: (N, D_f, H_l, W_l) of each level.
    """

    feature: Tensor
    stuff: Tensor
    logits: list[Tensor]
    filters: list[Tensor]


class Features(NamedTuple):
    """The panoptic feature (N, D, h, w) of things and of stuff, usually one, and filter maps."""

    things: Tensor
    stuff: Tensor
    maps: FilterMaps


@META_ARCH_REGISTRY.register()
class SPINet(BackboneModel):
    """One feature for things and stuff, and a filter for each of them.

    Args:
        backbone: gives the levels.
        filter_sampling: class head, filter head and generator.
        panoptic_feature: makes the panoptic feature.
        stuff_feature: makes one for stuff, so that the other is for things alone (Table 5); None:
            both have the same.
        stuff_filters: (S, D, k, k) start of the filters of stuff, which are learned.
        criterion: weights and settings of the losses.
        triplets, contours: auxiliary tasks; None leaves them out.
        feature_levels, filter_levels: names of the levels that the two parts read.
        pixel_mean, pixel_std: of the channels of the input, in its order.
        score_thresh: locations below it are no things.
        topk_candidates: the best locations of an image whose masks are made.
        nms_thresh: IoU of masks over which two of one class are the same thing.
        max_detections: how many things an image has at most.
        merge: makes the panoptic map; None leaves it out.
        class_layers_only: freeze what does not depend on the classes.
    """

    class_layers = ("filter_sampling.class_score.", "stuff_filters")
    class_counts = ("MODEL.RETINANET.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.NUM_CLASSES")

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        filter_sampling: FilterSampling,
        panoptic_feature: PanopticFeature,
        stuff_feature: PanopticFeature | None = None,
        stuff_filters: Tensor,
        criterion: Criterion,
        triplets: IntraClassTriplets | None,
        contours: InterClassContours | None,
        feature_levels: Sequence[str],
        filter_levels: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        score_thresh: float = 0.05,
        topk_candidates: int = 100,
        nms_thresh: float = 0.5,
        max_detections: int = 100,
        merge: Merge | None = None,
        class_layers_only: bool = False,
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.filter_sampling = filter_sampling
        self.panoptic_feature, self.stuff_feature = panoptic_feature, stuff_feature
        self.stuff_filters = nn.Parameter(stuff_filters)
        self.criterion = criterion
        self.triplets, self.contours = triplets, contours
        self.feature_levels, self.filter_levels = list(feature_levels), list(filter_levels)
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        self.merge = merge
        if class_layers_only:
            train_only_class_layers(self, self.class_layers)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """The parts from MODEL.SPINET and the keys of Detectron2, see :mod:`spatialflow.config`.

        Raises:
            ValueError: a class count is not set.
        """
        check_class_counts(cfg, cls.class_counts)
        return {**build_parts(cfg), "merge": cls.build_merge(cfg)}

    def losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """The terms of eq. (7), each already weighted.

        Args:
            batched_inputs: besides what :meth:`forward` needs ``instances`` (``gt_classes``,
                ``gt_masks``), ``sem_seg`` (h, w) int64, and ``crowd_mask`` (h, w) bool if there
                are crowds.

        Returns:
            ``loss_cls``, ``loss_mask`` (L_t), ``loss_sem_seg`` (the cross-entropy of L_s), and
            where their weights are not 0 ``loss_sem_seg_dice``, ``loss_contour`` (L_inter) and
            ``loss_triplet`` (L_intra).

        Raises:
            ValueError: an image lacks a target, see :mod:`spatialflow.modeling.ground_truth`.
        """
        images = self.preprocess_image(batched_inputs)
        size = (images.tensor.shape[-2], images.tensor.shape[-1])
        ignore_value = self.criterion.ignore_value
        targets = [image_targets(x, size, ignore_value, self.device) for x in batched_inputs]
        features = self._features(images.tensor, self._own_sizes(images.image_sizes))
        maps = features.maps
        losses, sampled = self.criterion.classification(maps.logits, targets, self._strides)
        logits = []
        for i, locations in enumerate(sampled.locations):
            things = self.filter_sampling.sample([x[i] for x in maps.filters], locations)
            logits.append(self._single_shot(features, i, things))
        losses |= self.criterion.segmentation(logits, sampled, targets)
        if self.triplets is not None:
            losses["loss_triplet"] = self.triplets(features.things, targets)
        if self.contours is not None:
            losses["loss_contour"] = self.contours(features.stuff, targets)
        return self.criterion.weighted(losses)

    def _single_shot(self, features: Features, i: int, things: Tensor) -> Tensor:
        """(n + S, h, w) logits of image i, by one convolution if one feature serves both."""
        if self.stuff_feature is None:
            return single_shot_convolution(
                features.things[i], torch.cat([things, self.stuff_filters])
            )
        parts = ((features.things, things), (features.stuff, self.stuff_filters))
        return torch.cat([single_shot_convolution(x[i], filters) for x, filters in parts])

    @property
    def _strides(self) -> list[int]:
        return self.filter_sampling.strides

    def _own_sizes(self, image_sizes: Sizes) -> list[tuple[int, int]]:
        """The size of each image as if it were alone in its batch."""
        unit = max(self.size_divisibility, 1)
        return [(-(-h // unit) * unit, -(-w // unit) * unit) for h, w in image_sizes]

    def _features(self, images: Tensor, sizes: Sizes) -> Features:
        pyramid = self.backbone(images)
        levels = [pyramid[name] for name in self.feature_levels]
        things = stuff = self.panoptic_feature(levels, sizes)
        if self.stuff_feature is not None:
            stuff = self.stuff_feature(levels, sizes)
        maps = self.filter_sampling([pyramid[name] for name in self.filter_levels], sizes)
        return Features(things, stuff, maps)

    def dense(self, images: Tensor) -> DenseOutputs:
        """The panoptic feature, stuff logits, class logits and filter maps."""
        size = (images.shape[-2], images.shape[-1])
        features = self._features(images, [size] * len(images))
        stuff = single_shot_convolution(features.stuff, self.stuff_filters)
        return DenseOutputs(features.things, stuff, *features.maps)

    def find_candidates(
        self, dense: DenseOutputs, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Instances]:
        """The best things of each image, with ``dense_masks`` besides :class:`PanopticModel`'s."""
        found = []
        for i, (size, output_size) in enumerate(zip(image_sizes, output_sizes, strict=True)):
            candidates = self._candidates(dense, i, size)
            boxes = boxes_at(candidates, output_size)
            found.append(Instances(output_size, **{**candidates.get_fields(), "pred_boxes": boxes}))
        return found

    def _candidates(self, dense: DenseOutputs, i: int, image_size: tuple[int, int]) -> Instances:
        """The candidates of image i with boxes in pixels of the network input."""
        scores = [x[i] for x in dense.logits]
        peaks = find_peaks(scores, self.score_thresh, self.topk_candidates)
        masks = self._masks_at(dense, i, peaks.locations, image_size)
        candidates = Instances(
            image_size,
            pred_boxes=masks.boxes(),
            scores=peaks.scores,
            pred_classes=peaks.classes,
            dense_masks=masks,
        )
        return candidates[candidates.pred_boxes.nonempty()]

    def _masks_at(
        self, dense: DenseOutputs, i: int, locations: Tensor, image_size: tuple[int, int]
    ) -> DenseMasks:
        """The masks of image i that the filters at locations give."""
        filters = self.filter_sampling.sample([x[i] for x in dense.filters], locations)
        return DenseMasks(single_shot_convolution(dense.feature[i], filters), image_size)

    def select(self, candidates: Instances) -> Instances:
        """NMS by masks, class by class (a reading), and the best of what is left."""
        masks: DenseMasks = candidates.dense_masks
        kept = mask_nms(masks.binary(), candidates.scores, candidates.pred_classes, self.nms_thresh)
        return candidates[kept[: self.max_detections]]

    def stuff_scores(
        self, dense: DenseOutputs, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Tensor]:
        """Stuff scores (S, H, W) of each image at its output size."""
        return [upsample(*one) for one in zip(dense.stuff, image_sizes, output_sizes, strict=True)]

    def mask_features(self, dense: DenseOutputs) -> DenseOutputs:
        """All but the stuff logits."""
        return dense._replace(stuff=dense.stuff[:, :0])

    def predict_masks(
        self, features: DenseOutputs, instances: list[Instances], image_sizes: Sizes
    ) -> list[Tensor]:
        """Mask logits (n, h, w) of own candidates, probabilities (n, M, M) for any other boxes.

        A box that is asked for gets the mask of the model's own candidate of its class that meets
        it best or, where none does, that of the filter at the centre of the box, on the level that
        has the best score for the class there.
        """
        masks = []
        for i, (found, size) in enumerate(zip(instances, image_sizes, strict=True)):
            if found.has("dense_masks"):
                masks.append(found.dense_masks.logits)
                continue
            boxes = boxes_at(found, size)
            masks.append(self._masks_in(features, i, boxes, found.pred_classes, size))
        return masks

    def _masks_in(
        self,
        features: DenseOutputs,
        i: int,
        boxes: Boxes,
        classes: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        """Mask probabilities for boxes of image i, in pixels of the network input."""
        own = self._candidates(features, i, image_size)
        logits = own.dense_masks.logits.new_zeros(len(boxes), *features.feature.shape[-2:])
        known = torch.zeros(len(boxes), dtype=torch.bool, device=classes.device)
        if len(own):
            iou = pairwise_iou(boxes, own.pred_boxes)
            iou = iou.masked_fill(classes[:, None] != own.pred_classes, 0)
            best, which = iou.max(dim=1)
            known = best >= GIVEN_BOX_IOU
            logits[known] = own.dense_masks.logits[which[known]]
        if not known.all():
            scores = [x[i] for x in features.logits]
            locations = central_locations(scores, self._strides, boxes[~known], classes[~known])
            logits[~known] = self._masks_at(features, i, locations, image_size).logits
        return DenseMasks(logits, image_size).in_boxes(boxes, GIVEN_BOX_SIDE)

    def attach_masks(self, instances: Instances, masks: Tensor) -> None:
        """Set ``pred_masks``; own candidates get the boxes around them, too."""
        if not instances.has("dense_masks"):
            super().attach_masks(instances, masks)
            return
        dense: DenseMasks = instances.dense_masks
        instances.remove("dense_masks")
        instances.pred_masks = dense.at_size(instances.image_size)
        boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
        instances.pred_boxes = boxes.to(instances.scores.device)

    def class_logits(self) -> ClassLogits:
        """The predictor of the class head."""
        return ClassLogits(self.filter_sampling.class_score, has_background=False)
