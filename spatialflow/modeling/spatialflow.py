"""SpatialFlow, the meta-architecture: the order in which data walks through the model.

    image -> backbone and FPN -> sub-networks and flows -> boxes, masks, stuff scores -> one map

Legend: N images, C channels, P3 to P7 the FPN levels, H x W the size of the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from .class_layers import train_only_class_layers
from .config_check import check_config
from .detection import DensePredictions, Detector
from .ground_truth import crowd_mask, gt_instances, target
from .mask_head import ThingHead, paste_masks
from .panoptic import MergeSettings, is_confident, merge_results, most_likely_labels
from .stuff_head import StuffHead
from .subnets import SEGMENTATION_LEVELS, SubnetFeatures, Subnetworks

T = TypeVar("T")
PYRAMID = ("p3", "p4", "p5", "p6", "p7")
PIXELS_AT_A_TIME_ON_CPU = 2**19
"""A larger batch runs in parts: from there on a ResNet's largest features have more than the 32 MB
that glibc keeps for the next layer, and to get memory from the system anew takes longer than a
batch saves (docs/PERFORMANCE.md)."""


@META_ARCH_REGISTRY.register()
class SpatialFlow(nn.Module):
    """A RetinaNet with four sub-networks, information flows, and a thing and a stuff branch.

    Args:
        backbone: gives p3 to p7.
        subnets: the sub-networks and the flows between them.
        detector: cls and reg heads.
        thing_head: None without the thing branch.
        stuff_head: None without the stuff branch.
        pixel_mean, pixel_std: of the channels of the input, in its order.
        merge_settings: thresholds of the merge.
        panoptic_on: whether things and stuff are merged.
        class_layers_only: freeze all but the layers that depend on the classes.
    """

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
        merge_settings: MergeSettings = MergeSettings(),  # noqa: B008
        panoptic_on: bool = True,
        class_layers_only: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.subnets = subnets
        self.detector = detector
        self.thing_head = thing_head
        self.stuff_head = stuff_head
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.merge_settings = merge_settings
        self.panoptic_on = panoptic_on and thing_head is not None and stuff_head is not None
        if class_layers_only:
            train_only_class_layers(self)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """The parts from the keys of :mod:`spatialflow.config`.

        Raises:
            ValueError: see :func:`check_config`.
        """
        check_config(cfg)
        backbone = build_backbone(cfg)
        shapes = {name: backbone.output_shape()[name] for name in PYRAMID}
        segmentation_shapes = {name: shapes[name] for name in PYRAMID[:SEGMENTATION_LEVELS]}
        keys = cfg.MODEL.SPATIALFLOW
        return {
            "backbone": backbone,
            "subnets": Subnetworks(cfg, shapes["p3"].channels),
            "detector": Detector(cfg, list(shapes.values()), backbone.size_divisibility),
            "thing_head": ThingHead(cfg, segmentation_shapes) if keys.THING_ON else None,
            "stuff_head": StuffHead(cfg, segmentation_shapes) if keys.STUFF_ON else None,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "merge_settings": MergeSettings.from_config(cfg),
            "panoptic_on": cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED,
            "class_layers_only": keys.CLASS_LAYERS.TRAIN_ONLY,
        }

    @property
    def predicts_masks(self) -> bool:
        """Whether there is a thing branch."""
        return self.thing_head is not None

    @property
    def predicts_stuff(self) -> bool:
        """Whether there is a stuff branch."""
        return self.stuff_head is not None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, results in evaluation.

        Args:
            batched_inputs: one dict an image. ``image``: (3, h, w) in the config's channel order;
                ``height`` and ``width``: the output size (default: h and w). In training also
                ``instances`` (``gt_boxes``, ``gt_classes``, ``gt_masks`` as BitMasks or
                PolygonMasks), ``sem_seg`` (h, w) int64, and ``crowd_mask`` (h, w) bool if there are
                crowds.

        Returns:
            In training ``loss_cls``, ``loss_box_reg``, ``loss_mask`` and ``loss_sem_seg``, scalars,
            the last two where their branch is on. In evaluation a dict an image: ``instances``
            (``pred_boxes``, ``scores``, ``pred_classes``, ``pred_masks`` (n, H, W) bool),
            ``sem_seg`` (S, H, W) scores, and ``panoptic_seg``, the map (H, W) int32 and its
            segments.
        """
        if self.training:
            return self.losses(batched_inputs)
        return self._by_size(self.inference, batched_inputs)

    @torch.no_grad()
    def panoptic_inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Only the panoptic maps, with less time and memory than all results take.

        Masks are predicted for the instances over the score threshold alone, and stuff scores are
        brought to the output size a few labels at a time.

        Args:
            batched_inputs: see :meth:`forward`.

        Returns:
            A dict an image with ``panoptic_seg``, but for rounding that of :meth:`forward`.

        Raises:
            RuntimeError: the model makes no panoptic maps.
        """
        if not self.panoptic_on:
            raise RuntimeError("This model has no panoptic output; call the model itself.")
        return self._by_size(self._merge_confident, batched_inputs)

    def losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """The terms of eq. (6), each already weighted.

        Raises:
            ValueError: an image lacks a target, see :mod:`spatialflow.modeling.ground_truth`.
        """
        images = self.preprocess_image(batched_inputs)
        things = [gt_instances(x, self.device, masks=self.predicts_masks) for x in batched_inputs]
        crowd_masks = [crowd_mask(x, self.device) for x in batched_inputs]
        features = self.extract_features(images)
        predictions = self.detector(features.cls, features.reg)
        anchors = self.detector.anchor_generator(features.cls)
        targets = self.detector.label_anchors(
            anchors, things, crowd_masks, [x.shape[-2:] for x in features.cls]
        )
        losses = self.detector.losses(predictions, anchors, targets)
        if self.thing_head is not None:
            detections = self._detections_in_training(predictions, anchors, images)
            regions = self.thing_head.sample(detections, things)
            losses |= self.thing_head.losses(features.thing, regions)
        if self.stuff_head is not None:
            losses |= self.stuff_head.losses(features.stuff, self._stuff_targets(batched_inputs))
        return losses

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """The results of images that pad to one size, see :meth:`forward`."""
        images = self.preprocess_image(batched_inputs)
        output_sizes = _output_sizes(batched_inputs, images)
        features = self.extract_features(images)
        instances = self.detect(features, images.image_sizes, output_sizes)
        results = [{"instances": found} for found in instances]
        if self.thing_head is not None:
            masks = self.predict_masks(features, instances, images.image_sizes)
            for found, masks_i in zip(instances, masks, strict=True):
                found.pred_masks = paste_masks(masks_i, found)
        if self.stuff_head is not None:
            scores = self.stuff_scores(features, images.image_sizes, output_sizes)
            for result, scores_i in zip(results, scores, strict=True):
                result["sem_seg"] = scores_i
        if self.panoptic_on:
            for result in results:
                result["panoptic_seg"] = self.merge(result["instances"], result["sem_seg"])
        return results

    def _merge_confident(self, batched_inputs: list[dict]) -> list[dict]:
        """The results of images that pad to one size, see :meth:`panoptic_inference`."""
        images = self.preprocess_image(batched_inputs)
        output_sizes = _output_sizes(batched_inputs, images)
        features = self.extract_features(images)
        instances = [
            found[is_confident(found.scores, self.merge_settings.score_thresh)]
            for found in self.detect(features, images.image_sizes, output_sizes)
        ]
        masks = self.predict_masks(features, instances, images.image_sizes)
        stuff = self.dense_stuff_scores(features)
        results = []
        for found, masks_i, *scores in zip(
            instances, masks, stuff, images.image_sizes, output_sizes, strict=True
        ):
            labels = self.stuff_head.postprocess_labels(*scores)
            found.pred_masks = paste_masks(masks_i, found)
            merged = merge_results(found, labels, stuff.shape[1], self.merge_settings)
            results.append({"panoptic_seg": merged})
        return results

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images, then pad them with zeros to one size the backbone can take."""
        images = [
            (x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs
        ]
        return ImageList.from_tensors(
            images,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def extract_features(self, images: ImageList) -> SubnetFeatures:
        """Backbone, FPN, sub-networks and flows."""
        pyramid = self.backbone(images.tensor)
        return self.subnets([pyramid[name] for name in PYRAMID])

    def detect(
        self,
        features: SubnetFeatures,
        image_sizes: list[tuple[int, int]],
        output_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Detections of each image at its output size: boxes, scores and classes."""
        candidates = self.find_candidates(features, image_sizes, output_sizes)
        return [self.detector.select(found) for found in candidates]

    def find_candidates(
        self,
        features: SubnetFeatures,
        image_sizes: list[tuple[int, int]],
        output_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """What :meth:`detect` selects from: boxes, scores and classes before NMS."""
        predictions = self.detector(features.cls, features.reg)
        anchors = self.detector.anchor_generator(features.cls)
        return self.detector.find_candidates(predictions, anchors, image_sizes, output_sizes)

    def mask_features(self, features: SubnetFeatures) -> SubnetFeatures:
        """What :meth:`predict_masks` needs of the features, so that the rest can be freed."""
        return SubnetFeatures(cls=[], reg=[], stuff=[], thing=features.thing)

    def predict_masks(
        self,
        features: SubnetFeatures,
        instances: list[Instances],
        image_sizes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """Mask probabilities (n, M, M) for given boxes, of the class of each.

        Args:
            features: of the images.
            instances: ``pred_boxes`` at the output size and ``pred_classes``.
            image_sizes: (height, width) of each network input without padding.
        """
        boxes = []
        for found, (height, width) in zip(instances, image_sizes, strict=True):
            boxes_i = found.pred_boxes.clone()
            boxes_i.scale(width / found.image_size[1], height / found.image_size[0])
            boxes.append(boxes_i)
        return self.thing_head.predict(features.thing, boxes, [i.pred_classes for i in instances])

    def stuff_scores(
        self,
        features: SubnetFeatures,
        image_sizes: list[tuple[int, int]],
        output_sizes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """Stuff scores (S, H, W) of each image at its output size."""
        scores = self.dense_stuff_scores(features)
        return [
            self.stuff_head.postprocess(*one)
            for one in zip(scores, image_sizes, output_sizes, strict=True)
        ]

    def dense_stuff_scores(self, features: SubnetFeatures) -> Tensor:
        """Stuff scores (N, S, h, w) at the size of the padded network input."""
        return self.stuff_head(features.stuff)

    def merge(self, instances: Instances, stuff_scores: Tensor) -> tuple[Tensor, list[dict]]:
        """The panoptic map and its segments from the instances and stuff scores of one image."""
        labels = most_likely_labels(stuff_scores)
        return merge_results(instances, labels, len(stuff_scores), self.merge_settings)

    @torch.no_grad()
    def _detections_in_training(
        self, predictions: DensePredictions, anchors: list[Boxes], images: ImageList
    ) -> list[Instances]:
        """What the detector finds now, to train masks on (Sec. IV-B, NMS at 0.4)."""
        return self.detector.inference(predictions, anchors, images.image_sizes, images.image_sizes)

    def _stuff_targets(self, batched_inputs: list[dict]) -> Tensor:
        """(N, h, w) int64 stuff labels, padded as the images are with the ignored value."""
        return ImageList.from_tensors(
            [target(x, "sem_seg").to(self.device) for x in batched_inputs],
            self.backbone.size_divisibility,
            self.stuff_head.ignore_value,
            self.backbone.padding_constraints,
        ).tensor

    def _by_size(
        self, infer: Callable[[list[dict]], list[dict]], batched_inputs: list[dict]
    ) -> list[dict]:
        """Run images that pad to one size together: no result depends on the rest of the batch."""
        results: list[dict] = [{}] * len(batched_inputs)
        for indices in self._groups_of_one_size(batched_inputs):
            group = infer([batched_inputs[i] for i in indices])
            for i, result in zip(indices, group, strict=True):
                results[i] = result
        return results

    def _groups_of_one_size(self, batched_inputs: list[dict]) -> list[list[int]]:
        groups: dict[tuple[int, ...], list[int]] = {}
        unit = max(self.backbone.size_divisibility, 1)
        for i, x in enumerate(batched_inputs):
            padded = tuple(math.ceil(side / unit) * unit for side in x["image"].shape[-2:])
            groups.setdefault(padded, []).append(i)
        return [
            part for size, group in groups.items() for part in split_batch(group, size, self.device)
        ]


def _output_sizes(batched_inputs: list[dict], images: ImageList) -> list[tuple[int, int]]:
    """The (height, width) that each image's results are wanted at, see ``SpatialFlow.forward``."""
    return [
        (x.get("height", size[0]), x.get("width", size[1]))
        for x, size in zip(batched_inputs, images.image_sizes, strict=True)
    ]


def split_batch(batch: list[T], size: tuple[int, int], device: torch.device) -> list[list[T]]:
    """The parts of a batch that run one after the other: on a CPU as few images as suit its memory.

    Args:
        batch: whatever stands for the images.
        size: (height, width) of each.
        device: where they run.
    """
    step = len(batch)
    if device.type == "cpu":
        step = max(1, PIXELS_AT_A_TIME_ON_CPU // (size[0] * size[1]))
    return [batch[i : i + step] for i in range(0, len(batch), step)]
