"""What differs between the models that can be exported: detection, masks, stuff scores.

A system is chosen by the class of a panoptic model; :func:`register_system` adds one.
Legend: see :mod:`.detections`; S stuff labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor, nn

from spatialflow.errors import UserError
from spatialflow.modeling.panoptic_model import PanopticModel
from spatialflow.modeling.rcnn import PanopticFPNModel
from spatialflow.modeling.spatialflow import SpatialFlow

from .detections import (
    NEVER,
    Detections,
    Frame,
    best_of_level,
    clip_boxes,
    is_not_empty,
    level_anchors,
    over_threshold,
    suppress,
)
from .regions import masks_of_classes, pool_regions

_SYSTEMS: dict[type[PanopticModel], type[System]] = {}
SystemClass = TypeVar("SystemClass", bound="type[System]")


class System(nn.Module, ABC):
    """The steps of a model of one class, in tensors of fixed sizes, for one image.

    Args:
        model: prepared for export, see :func:`spatialflow.export.prepare.prepare`.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.pixel_mean, self.pixel_std = _pixels(model)

    def dense(self, images: Tensor) -> Any:
        """See :meth:`PanopticModel.dense`."""
        return self.model.dense(images)

    @property
    @abstractmethod
    def max_detections(self) -> int:
        """K."""

    @property
    @abstractmethod
    def score_thresh(self) -> float:
        """The model's own threshold of detections."""

    @abstractmethod
    def detect(self, dense: Any, frame: Frame, threshold: Tensor) -> Detections:
        """The detections with a score over a threshold, :attr:`max_detections` rows."""

    @abstractmethod
    def masks(self, dense: Any, boxes: Tensor, classes: Tensor) -> Tensor:
        """Mask probabilities (K, M, M) of boxes at the size of the network's input."""

    @abstractmethod
    def stuff_scores(self, scores: Tensor, frame: Frame) -> Tensor:
        """Some of the stuff scores, (s, h, w) with the padding, at the output size."""


def register_system(model_class: type[PanopticModel]) -> Callable[[SystemClass], SystemClass]:
    """Decorate the :class:`System` of a class of panoptic models."""

    def register(system: SystemClass) -> SystemClass:
        _SYSTEMS[model_class] = system
        return system

    return register


def system_of(model: PanopticModel) -> System:
    """The system of a prepared model.

    Raises:
        UserError: models of this class cannot be exported.
    """
    for base in type(model).__mro__:
        if base in _SYSTEMS:
            return _SYSTEMS[base](model)
    known = ", ".join(sorted(c.__name__.removesuffix("Model") for c in _SYSTEMS))
    raise UserError(
        f"{type(model).__name__} cannot be exported: of the meta-architectures {known} can, one "
        "model at a time, without the views of TEST.AUG."
    )


@register_system(SpatialFlow)
class SpatialFlowSystem(System):
    """SpatialFlow: RetinaNet's candidates, clipped and scaled before NMS."""

    @property
    def max_detections(self) -> int:
        """See :class:`System`."""
        return self.model.detector.max_detections

    @property
    def score_thresh(self) -> float:
        """See :class:`System`."""
        return self.model.detector.score_thresh

    def detect(self, dense: Any, frame: Frame, threshold: Tensor) -> Detections:
        """See :class:`System`."""
        detector = self.model.detector
        boxes, scores = [], []
        anchors = level_anchors(detector.anchor_generator, dense.features.cls)
        predictions = zip(dense.predictions.logits, dense.predictions.deltas, anchors, strict=True)
        for logits, deltas, of_level in predictions:
            best = best_of_level(logits[0].amax(dim=1), detector.topk_candidates)
            boxes.append(detector.decode(deltas[0][best], of_level[best]))
            scores.append(logits[0][best].sigmoid())
        at_output = clip_boxes(torch.cat(boxes), frame.input_size) * frame.scale()
        return over_threshold(
            at_output,
            torch.cat(scores),
            threshold,
            detector.nms_thresh,
            detector.max_detections,
        )

    def masks(self, dense: Any, boxes: Tensor, classes: Tensor) -> Tensor:
        """See :class:`System`."""
        head = self.model.thing_head
        pooled = pool_regions(head.mask_pooler, dense.features.thing, boxes)
        return masks_of_classes(head.mask_head.layers(pooled), classes)

    def stuff_scores(self, scores: Tensor, frame: Frame) -> Tensor:
        """See :class:`System`."""
        head = self.model.stuff_head
        if head.resize == "nearest":
            rows, columns = (_nearest(*sides) for sides in zip(*frame, strict=True))
            return scores.index_select(1, rows).index_select(2, columns)
        return resize_scores(scores, frame, head.align_corners)


@register_system(PanopticFPNModel)
class PanopticFPNSystem(System):
    """Detectron2's Panoptic FPN: proposals of the RPN, detections of the box head."""

    def __init__(self, model: PanopticFPNModel):
        super().__init__(model)
        self.rpn, self.heads = model.model.proposal_generator, model.model.roi_heads
        if not isinstance(self.heads.box_predictor, FastRCNNOutputLayers):
            raise UserError(
                f"{type(self.heads).__name__} cannot be exported: its box head has several steps."
            )

    @property
    def max_detections(self) -> int:
        """See :class:`System`."""
        return self.heads.box_predictor.test_topk_per_image

    @property
    def score_thresh(self) -> float:
        """See :class:`System`."""
        return self.heads.box_predictor.test_score_thresh

    def detect(self, dense: Any, frame: Frame, threshold: Tensor) -> Detections:
        """See :class:`System`."""
        proposals = self.proposals(dense, frame)
        features = [dense.pyramid[name] for name in self.heads.box_in_features]
        pooled = pool_regions(self.heads.box_pooler, features, proposals)
        predictor = self.heads.box_predictor
        logits, deltas = predictor(self.heads.box_head(pooled))
        boxes = predictor.box2box_transform.apply_deltas(deltas, proposals)
        boxes = clip_boxes(boxes.reshape(-1, 4), frame.input_size)
        if deltas.shape[1] > 4:
            boxes = boxes.reshape(-1, deltas.shape[1] // 4, 4)
        found = over_threshold(
            boxes,
            logits.softmax(dim=1)[:, :-1] * is_not_empty(proposals)[:, None],
            threshold,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return found._replace(boxes=clip_boxes(found.boxes * frame.scale(), frame.output_size))

    def proposals(self, dense: Any, frame: Frame) -> Tensor:
        """The R proposals (R, 4) at the size of the input; rows that hold none are 0."""
        rpn = self.rpn
        features = [dense.pyramid[name] for name in rpn.in_features]
        boxes, scores, levels = [], [], []
        anchors = level_anchors(rpn.anchor_generator, features)
        for i, (logits, deltas) in enumerate(zip(*rpn.rpn_head(features), strict=True)):
            # (1, A, h, w) and (1, 4 A, h, w) in the order of the anchors
            logits = logits[0].permute(1, 2, 0).flatten()
            deltas = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            best = best_of_level(logits, rpn.pre_nms_topk[False])
            boxes.append(rpn.box2box_transform.apply_deltas(deltas[best], anchors[i][best]))
            scores.append(logits[best])
            levels.append(torch.full_like(best, i))
        at_input = clip_boxes(torch.cat(boxes), frame.input_size)
        there = is_not_empty(at_input, rpn.min_box_size) & at_input.isfinite().all(dim=1)
        at_input = torch.where(there[:, None], at_input, 0.0)
        ranked = torch.where(there, torch.cat(scores), torch.full((), NEVER))
        count = rpn.post_nms_topk[False]
        return suppress(at_input, ranked, torch.cat(levels), rpn.nms_thresh, count).boxes

    def masks(self, dense: Any, boxes: Tensor, classes: Tensor) -> Tensor:
        """See :class:`System`."""
        features = [dense.pyramid[name] for name in self.heads.mask_in_features]
        pooled = pool_regions(self.heads.mask_pooler, features, boxes)
        return masks_of_classes(self.heads.mask_head.layers(pooled), classes)

    def stuff_scores(self, scores: Tensor, frame: Frame) -> Tensor:
        """See :class:`System`."""
        return resize_scores(scores, frame, align_corners=False)


def resize_scores(scores: Tensor, frame: Frame, align_corners: bool) -> Tensor:
    """Scores (s, h, w) without their padding, bilinear at the output size."""
    valid = scores[None, :, : frame.input_size[0], : frame.input_size[1]]
    return F.interpolate(valid, frame.output_size, mode="bilinear", align_corners=align_corners)[0]


def _nearest(size: int, output_size: int) -> Tensor:
    """As :class:`spatialflow.modeling.stuff_head.StuffHead` takes the nearest rows."""
    step = 1 / (
        torch.scalar_tensor(output_size, dtype=torch.float64)
        / torch.scalar_tensor(size, dtype=torch.float64)
    )
    rows = (torch.arange(output_size, dtype=torch.float64) * step).long()
    return torch.minimum(rows, torch.scalar_tensor(size, dtype=torch.int64) - 1)


def _pixels(model: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3, 1, 1) of the channels that a model takes."""
    owner = model if hasattr(model, "pixel_mean") else model.model
    return owner.pixel_mean, owner.pixel_std
