"""The stages of the two models between image and panoptic map, to be timed one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from torch import nn

from spatialflow.modeling.mask_head import paste_masks
from spatialflow.modeling.spatialflow import PYRAMID

Stages = Iterator[tuple[str, Callable[[], Any]]]


def stages_of(name: str, model: nn.Module, image: dict) -> Stages:
    """Name and call of each stage; a stage uses what those before it left behind."""
    state = SimpleNamespace()
    make = _spatialflow_stages if name == "SpatialFlow" else _panoptic_fpn_stages
    for stage, function in make(model, image, state):
        yield stage, torch.no_grad()(lambda function=function: vars(state).update(function()))


def _spatialflow_stages(model: nn.Module, image: dict, s: SimpleNamespace) -> Stages:
    detector = model.detector
    yield "preprocess", lambda: {"images": model.preprocess_image([image])}
    yield "backbone, FPN", lambda: {"pyramid": model.backbone(s.images.tensor)}
    yield (
        "sub-networks",
        lambda: {"features": model.subnets([s.pyramid[name] for name in PYRAMID])},
    )
    yield (
        "detection head",
        lambda: {"predictions": detector(s.features.cls, s.features.reg)},
    )

    def detect() -> dict:
        sizes = s.images.image_sizes
        anchors = detector.anchor_generator(s.features.cls)
        return {"instances": detector.inference(s.predictions, anchors, sizes, sizes)}

    def masks() -> dict:
        return {"masks": model.predict_masks(s.features, s.instances, s.images.image_sizes)[0]}

    def stuff() -> dict:
        sizes = s.images.image_sizes
        return {"stuff": model.stuff_scores(s.features, sizes, sizes)[0]}

    def merge() -> dict:
        found = s.instances[0]
        found.pred_masks = paste_masks(s.masks, found)
        return {"panoptic": model.merge(found, s.stuff)}

    yield "boxes, NMS", detect
    yield "masks", masks
    yield "stuff", stuff
    yield "pasting, merge", merge


def _panoptic_fpn_stages(model: nn.Module, image: dict, s: SimpleNamespace) -> Stages:
    yield "preprocess", lambda: {"images": model.preprocess_image([image])}
    yield "backbone, FPN", lambda: {"features": model.backbone(s.images.tensor)}
    yield (
        "proposals, NMS",
        lambda: {"proposals": model.proposal_generator(s.images, s.features, None)[0]},
    )

    heads = model.roi_heads
    yield (
        "boxes, NMS",
        lambda: {"instances": heads._forward_box(s.features, s.proposals)},
    )
    yield (
        "masks",
        lambda: {"instances": heads.forward_with_given_boxes(s.features, s.instances)},
    )

    def stuff() -> dict:
        scores = model.sem_seg_head(s.features, None)[0][0]
        size = s.images.image_sizes[0]
        return {"stuff": sem_seg_postprocess(scores, size, *size)}

    def merge() -> dict:
        instances = detector_postprocess(s.instances[0], *s.images.image_sizes[0])
        return {
            "panoptic": combine_semantic_and_instance_outputs(
                instances,
                s.stuff.argmax(dim=0),
                model.combine_overlap_thresh,
                model.combine_stuff_area_thresh,
                model.combine_instances_score_thresh,
            )
        }

    yield "stuff", stuff
    yield "pasting, merge", merge
