"""The model and its parts by Detectron2's lazy configs."""

from __future__ import annotations

import torch
from builders import (
    ANCHOR_SIZES,
    ANCHOR_STRIDES,
    CHANNELS,
    FLOWS,
    STAGES,
    STUFF_LABELS,
    THINGS,
    TinyBackbone,
    make_input,
)
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead

from spatialflow.modeling import SpatialFlow
from spatialflow.modeling.detection import Detector
from spatialflow.modeling.mask_head import ThingHead
from spatialflow.modeling.stuff_head import StuffHead
from spatialflow.modeling.subnets import Subnetworks


def lazy_stuff_head():
    strides = {"p3": 8, "p4": 16, "p5": 32}
    shapes = {name: LazyCall(ShapeSpec)(channels=CHANNELS, stride=s) for name, s in strides.items()}
    return LazyCall(StuffHead)(
        input_shape=shapes,
        num_classes=STUFF_LABELS,
        conv_dims=64,
        common_stride=4,
        loss_weight=0.25,
        norm="GN",
        ignore_value=255,
    )


def lazy_detector():
    return LazyCall(Detector)(
        channels=CHANNELS,
        num_classes=THINGS,
        anchor_generator=LazyCall(DefaultAnchorGenerator)(
            sizes=[list(sizes) for sizes in ANCHOR_SIZES],
            aspect_ratios=[[0.5, 1.0, 2.0]],
            strides=list(ANCHOR_STRIDES),
            offset=0.0,
        ),
        anchor_matcher=LazyCall(Matcher)(
            thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=LazyCall(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    )


def lazy_thing_head():
    return LazyCall(ThingHead)(
        mask_pooler=LazyCall(ROIPooler)(
            output_size=14,
            scales=[1 / 8, 1 / 16, 1 / 32],
            sampling_ratio=0,
            pooler_type="ROIAlignV2",
            canonical_level=5,
        ),
        mask_head=LazyCall(MaskRCNNConvUpsampleHead)(
            input_shape=LazyCall(ShapeSpec)(channels=CHANNELS, height=14, width=14),
            num_classes=THINGS,
            conv_dims=[CHANNELS, CHANNELS],
        ),
        proposal_matcher=LazyCall(Matcher)(thresholds=[0.5], labels=[0, 1]),
    )


def lazy_model():
    return LazyCall(SpatialFlow)(
        backbone=LazyCall(TinyBackbone)(),
        subnets=LazyCall(Subnetworks)(
            channels=CHANNELS, num_stages=dict(STAGES), flows=list(FLOWS), deform_on=["cls"]
        ),
        detector=lazy_detector(),
        thing_head=lazy_thing_head(),
        stuff_head=lazy_stuff_head(),
        pixel_mean=[100.0, 110.0, 120.0],
        pixel_std=[50.0, 50.0, 50.0],
    )


def test_stuff_head_takes_its_shapes_as_a_keyword_of_any_kind():
    lazy = lazy_stuff_head()
    given = {k: v for k, v in lazy.items() if k not in ("_target_", "input_shape")}
    shapes = {name: instantiate(shape) for name, shape in lazy.input_shape.items()}
    features = [torch.zeros(1, CHANNELS, 8 // 2**i, 8 // 2**i) for i in range(3)]
    for head in (StuffHead(input_shape=shapes, **given), instantiate(lazy)):
        assert head(features).shape == (1, STUFF_LABELS, 64, 64)


def test_whole_model_trains_and_evaluates(tmp_path):
    lazy = lazy_model()
    LazyConfig.save(lazy, str(tmp_path / "config.yaml"))
    for config in (lazy, LazyConfig.load(str(tmp_path / "config.yaml"))):
        model = instantiate(config)
        losses = model([make_input(boxes=[(8, 8, 40, 40)])])
        assert all(loss.isfinite() for loss in losses.values())
        (result,) = model.eval()([make_input()])
        assert result["sem_seg"].shape == (STUFF_LABELS, 64, 96)
