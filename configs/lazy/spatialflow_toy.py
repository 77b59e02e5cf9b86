"""The toy scenes by a lazy config, for Detectron2's tools/lazyconfig_train_net.py.

The model is that of configs/toy/spatialflow_toy.yaml. AdamW has a smaller learning rate instead of
gradient clipping, which Detectron2's loop does not have. To train on data of your own, call
``spatialflow.data.register_coco_panoptic`` here and set the dataset names and class counts.
"""

import torch
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluators
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

from spatialflow.data import PanopticMapper, load_dataset_dicts
from spatialflow.evaluation import (
    PanopticEvaluator,
    PanopticGroundTruth,
    PanopticInstanceEvaluator,
    PanopticSemSegEvaluator,
)
from spatialflow.modeling import SpatialFlow
from spatialflow.modeling.backbone import P6P7
from spatialflow.modeling.detection import Detector
from spatialflow.modeling.mask_head import ThingHead, build_mask_head
from spatialflow.modeling.panoptic import HeuristicMerge
from spatialflow.modeling.stuff_head import StuffHead
from spatialflow.modeling.subnets import Subnetworks

TRAIN, TEST = "toy_panoptic_train", "toy_panoptic_val"
THINGS, STUFF_LABELS = 4, 5  # stuff with 'other'
CHANNELS = 64
STRIDES = [8, 16, 32, 64, 128]  # P3 to P7

backbone = L(FPN)(
    bottom_up=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="GN"),
        stages=L(ResNet.make_default_stages)(depth=18, norm="GN"),
        out_features=["res3", "res4", "res5"],
    ),
    in_features="${.bottom_up.out_features}",
    out_channels=CHANNELS,
    norm="GN",
    top_block=L(P6P7)(in_channels=512, out_channels=CHANNELS, norm="GN"),
)

detector = L(Detector)(
    channels=CHANNELS,
    num_classes=THINGS,
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[
            [16, 20.16, 25.4],
            [32, 40.32, 50.8],
            [64, 80.63, 101.59],
            [128, 161.27, 203.19],
            [256, 322.54, 406.37],
        ],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=STRIDES,
        offset=0.0,
    ),
    anchor_matcher=L(Matcher)(
        thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
    ),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
)

thing_head = L(ThingHead)(
    mask_pooler=L(ROIPooler)(
        output_size=14,
        scales=[1 / stride for stride in STRIDES[:3]],
        sampling_ratio=0,
        pooler_type="ROIAlignV2",
        canonical_level=5,
    ),
    mask_head=L(build_mask_head)(
        channels=CHANNELS, size=14, num_classes=THINGS, conv_dims=[64, 64, 64], norm="GN"
    ),
    proposal_matcher=L(Matcher)(thresholds=[0.5], labels=[0, 1]),
)

stuff_head = L(StuffHead)(
    input_shape={
        name: L(ShapeSpec)(channels=CHANNELS, stride=stride)
        for name, stride in zip(("p3", "p4", "p5"), STRIDES[:3], strict=True)
    },
    num_classes=STUFF_LABELS,
    conv_dims=64,
    common_stride=4,
    loss_weight=0.25,
    norm="GN",
    ignore_value=255,
)

model = L(SpatialFlow)(
    backbone=backbone,
    subnets=L(Subnetworks)(
        channels=CHANNELS,
        num_stages={"cls": 4, "reg": 4, "stuff": 4, "thing": 1},
        flows=["reg_cls", "reg_stuff", "reg_thing", "stuff_thing"],
        norm="LN",
        init="msra",
        flow_init="zero",
    ),
    detector=detector,
    thing_head=thing_head,
    stuff_head=stuff_head,
    pixel_mean=[103.53, 116.28, 123.675],
    pixel_std=[1.0, 1.0, 1.0],
    merge=L(HeuristicMerge)(stuff_area_limit=64),
)

resize = L(T.ResizeShortestEdge)(short_edge_length=128, max_size=160)
ground_truth = L(PanopticGroundTruth)(dataset_name="${dataloader.test.dataset.name}")

dataloader = {
    "train": L(build_detection_train_loader)(
        dataset=L(load_dataset_dicts)(name=TRAIN),
        mapper=L(PanopticMapper)(
            is_train=True, augmentations=[resize, L(T.RandomFlip)()], image_format="BGR"
        ),
        total_batch_size=8,
        num_workers=0,
    ),
    "test": L(build_detection_test_loader)(
        dataset=L(load_dataset_dicts)(name=TEST),
        mapper=L(PanopticMapper)(is_train=False, augmentations=[resize], image_format="BGR"),
        num_workers=0,
    ),
    "evaluator": L(DatasetEvaluators)(
        evaluators=[
            L(PanopticEvaluator)(ground_truth=ground_truth),
            L(PanopticInstanceEvaluator)(ground_truth=ground_truth, tasks=["bbox", "segm"]),
            L(PanopticSemSegEvaluator)(ground_truth=ground_truth),
        ]
    ),
}

optimizer = L(torch.optim.AdamW)(
    # the training script sets params.model
    params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0001),
    lr=0.001,
    weight_decay=0.0001,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=0.04,  # of max_iter
    warmup_method="linear",
    warmup_factor=0.001,
)
train = {
    "output_dir": "output/toy_lazy",
    "init_checkpoint": "",
    "max_iter": 500,
    "seed": 1,
    "amp": {"enabled": False},
    "ddp": {"broadcast_buffers": False},
    "checkpointer": {"period": 500, "max_to_keep": 100},
    "eval_period": 500,
    "log_period": 20,
    "device": "cpu",
}
