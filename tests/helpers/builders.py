"""Small models and inputs for the tests of the model."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from spatialflow.modeling import SpatialFlow
from spatialflow.modeling.detection import Detector
from spatialflow.modeling.flows import ConvFlow
from spatialflow.modeling.mask_head import ThingHead
from spatialflow.modeling.stuff_head import StuffHead
from spatialflow.modeling.subnets import Subnetworks

CHANNELS = 16
THINGS = 3
STUFF_LABELS = 5
STRIDES = {f"p{i}": 2**i for i in range(3, 8)}
ANCHOR_STRIDES = tuple(STRIDES.values())
ANCHOR_SIZES = tuple(tuple(4 * s * 2 ** (i / 3) for i in range(3)) for s in ANCHOR_STRIDES)
FLOWS = ("reg_cls", "reg_stuff", "reg_thing", "stuff_thing")
STAGES = {"cls": 4, "reg": 4, "stuff": 4, "thing": 1}


class TinyBackbone(Backbone):
    """P3 to P7 from one patch convolution and four strided ones."""

    size_divisibility = 32

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 8, stride=8)
        self.down = nn.ModuleList(
            nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1) for _ in range(4)
        )

    def forward(self, x):
        features = [self.stem(x).relu()]
        for conv in self.down:
            features.append(conv(features[-1]).relu())
        return dict(zip(STRIDES, features, strict=True))

    def output_shape(self):
        return {name: ShapeSpec(channels=CHANNELS, stride=s) for name, s in STRIDES.items()}


def tiny_subnets(flows=FLOWS, channels=CHANNELS, std=0.1, stages=None, **kwargs) -> Subnetworks:
    """Sub-networks with weights large enough for every path to show in the result."""
    subnets = Subnetworks(channels, num_stages={**STAGES, **(stages or {})}, flows=flows, **kwargs)
    for parameter in subnets.parameters():
        nn.init.normal_(parameter, std=std)
    return subnets


def tiny_detector(
    make=Detector,
    sizes=ANCHOR_SIZES,
    ratios=(0.5, 1.0, 2.0),
    strides=ANCHOR_STRIDES,
    channels=CHANNELS,
    **kwargs,
) -> Detector:
    return make(
        channels=channels,
        num_classes=THINGS,
        anchor_generator=DefaultAnchorGenerator(
            sizes=[list(s) for s in sizes],
            aspect_ratios=[list(ratios)],
            strides=list(strides),
            offset=0.0,
        ),
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        **kwargs,
    )


def tiny_thing_head(channels=CHANNELS) -> ThingHead:
    return ThingHead(
        mask_pooler=ROIPooler(14, [1 / 8, 1 / 16, 1 / 32], 0, "ROIAlignV2", canonical_level=5),
        mask_head=MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=channels, height=14, width=14),
            num_classes=THINGS,
            conv_dims=[channels, channels],
        ),
        proposal_matcher=Matcher([0.5], [0, 1]),
    )


def tiny_stuff_head(channels=CHANNELS, loss_weight=0.25, **kwargs) -> StuffHead:
    shapes = {n: ShapeSpec(channels=channels, stride=STRIDES[n]) for n in ("p3", "p4", "p5")}
    return StuffHead(
        shapes,
        num_classes=STUFF_LABELS,
        conv_dims=64,  # two channels to each of GroupNorm's groups, for images of one cell
        common_stride=4,
        loss_weight=loss_weight,
        norm="GN",
        ignore_value=255,
        **kwargs,
    )


def tiny_model(things=True, stuff=True, flows=FLOWS, flow_type=ConvFlow, **kwargs) -> SpatialFlow:
    """A whole SpatialFlow, built in plain Python. ``kwargs``: of :class:`SpatialFlow`."""
    tasks = ["cls", "reg"] + ["stuff"] * stuff + ["thing"] * things
    return SpatialFlow(
        backbone=TinyBackbone(),
        subnets=tiny_subnets(flows, std=0.08, tasks=tasks, flow_type=flow_type),
        detector=tiny_detector(),
        thing_head=tiny_thing_head() if things else None,
        stuff_head=tiny_stuff_head() if stuff else None,
        pixel_mean=[100.0, 110.0, 120.0],
        pixel_std=[50.0, 50.0, 50.0],
        **kwargs,
    )


def ground_truth(size, boxes=(), classes=None) -> Instances:
    """Instances that fill their boxes, given in whole pixels; classes count up by default."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    classes = [i % THINGS for i in range(len(boxes))] if classes is None else classes
    return Instances(
        size,
        gt_boxes=Boxes(boxes),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
        gt_masks=BitMasks(masks),
    )


def filled(size, boxes) -> torch.Tensor:
    """A bool mask of this size that fills the boxes."""
    mask = torch.zeros(size, dtype=torch.bool)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = True
    return mask


def make_input(size=(64, 96), boxes=(), crowds=(), stuff=None, seed=0) -> dict:
    """One image of the model's input: noise, things that fill their boxes, stuff in two halves.

    ``stuff``: one label for the whole image instead.
    """
    generator = torch.Generator().manual_seed(seed)
    sem_seg = torch.full(size, 1 if stuff is None else stuff)
    if stuff is None:
        sem_seg[: size[0] // 2] = 2
        for x1, y1, x2, y2 in boxes:
            sem_seg[y1:y2, x1:x2] = 0
    return {
        "image": torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator),
        "height": size[0],
        "width": size[1],
        "instances": ground_truth(size, boxes),
        "sem_seg": sem_seg,
        "crowd_mask": filled(size, crowds),
    }


def randomize(norm):
    """A batch norm as training could leave it."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        nn.init.uniform_(getattr(norm, name), 0.5, 1.5)
    return norm
