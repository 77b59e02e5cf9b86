"""The parts of SPINet from the keys of a config."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from ..norms import norm_for_processes
from .auxiliary import InterClassContours, IntraClassTriplets
from .criterion import Criterion
from .filter_sampling import FilterSampling
from .panoptic_feature import PanopticFeature


def build_parts(cfg: CfgNode) -> dict[str, Any]:
    """All arguments of :class:`.model.SPINet` but the merge."""
    backbone = build_backbone(cfg)
    shapes, keys, detection = backbone.output_shape(), cfg.MODEL.SPINET, cfg.MODEL.RETINANET
    channels = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM
    filter_sampling = FilterSampling(
        shapes[keys.FILTER_LEVELS[0]].channels,
        detection.NUM_CLASSES,
        strides=[shapes[name].stride for name in keys.FILTER_LEVELS],
        filter_channels=keys.FILTER_CHANNELS,
        feature_channels=channels,
        kernel_size=keys.KERNEL_SIZE,
        num_convs=detection.NUM_CONVS,
        norm=norm_for_processes(detection.NORM, cfg.MODEL.DEVICE),
        prior_prob=detection.PRIOR_PROB,
    )
    panoptic_feature = partial(
        PanopticFeature,
        [shapes[name] for name in keys.FEATURE_LEVELS],
        channels,
        norm=norm_for_processes(cfg.MODEL.SEM_SEG_HEAD.NORM, cfg.MODEL.DEVICE),
        upsample_first=keys.UPSAMPLE_FIRST,
        deformable=keys.DEFORM_FEATURE,
    )
    shape = (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, channels, *[keys.KERNEL_SIZE] * 2)
    # Logits of about the size of those that the filters of things give at the start.
    stuff_filters = torch.randn(shape) / math.sqrt(channels * keys.KERNEL_SIZE**2)
    weights = keys.LOSS_WEIGHTS
    focal = (detection.FOCAL_LOSS_ALPHA, detection.FOCAL_LOSS_GAMMA)
    same_class = keys.TRIPLET_NEGATIVES == "same_class"
    return {
        "backbone": backbone,
        "filter_sampling": filter_sampling,
        "panoptic_feature": panoptic_feature(),
        "stuff_feature": panoptic_feature() if keys.TWO_FEATURES else None,
        "stuff_filters": stuff_filters,
        "criterion": Criterion(cfg),
        "triplets": IntraClassTriplets(channels, same_class) if weights.INTRA else None,
        "contours": InterClassContours(channels, *focal) if weights.INTER else None,
        "feature_levels": keys.FEATURE_LEVELS,
        "filter_levels": keys.FILTER_LEVELS,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "score_thresh": detection.SCORE_THRESH_TEST,
        "topk_candidates": detection.TOPK_CANDIDATES_TEST,
        "nms_thresh": detection.NMS_THRESH_TEST,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "class_layers_only": cfg.MODEL.CLASS_LAYERS.TRAIN_ONLY,
    }
