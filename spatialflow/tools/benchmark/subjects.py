"""What is measured: models with random weights, and their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import BitMasks, Instances
from torch import nn

from spatialflow.config import load_config
from spatialflow.model_zoo import get_config_file
from spatialflow.modeling.adapters import as_panoptic_model
from spatialflow.modeling.panoptic_model import PanopticModel

CONFIGS = {"SpatialFlow": "COCO/spatialflow_R_50_20e.yaml"}
BASELINE = {"Panoptic FPN": "panoptic_fpn/panoptic_fpn_R_50_20e.yaml"}
THINGS, STUFF_LABELS = 80, 54
DETECTIONS = 100
"""Number of detections of a model."""


@dataclass(frozen=True)
class BenchmarkModel:
    """A model that is measured.

    Attributes:
        model: the model as it is run and trained, a model of Detectron2 by its own forward.
        panoptic_model: the same weights as a :class:`PanopticModel`, for single steps.
        cfg: the config that it was built from.
    """

    model: nn.Module
    panoptic_model: PanopticModel
    cfg: CfgNode


def build(config: str, device: str, opts: Sequence[str] = ()) -> BenchmarkModel:
    """A model with COCO's class counts and random weights, in evaluation mode.

    Args:
        config: path of a config file, or a name in the model zoo.
        device: device of the model.
        opts: further overrides, ``KEY VALUE ...``.
    """
    classes = {"RETINANET": THINGS, "ROI_HEADS": THINGS, "SEM_SEG_HEAD": STUFF_LABELS}
    sizes = [x for part, n in classes.items() for x in (f"MODEL.{part}.NUM_CLASSES", str(n))]
    cfg = load_config(
        config if Path(config).is_file() else get_config_file(config),
        [*sizes, "MODEL.DEVICE", device, "MODEL.WEIGHTS", "", *opts],
    )
    cfg.TEST.DETECTIONS_PER_IMAGE = DETECTIONS
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for module in model.modules():
        if isinstance(module, BottleneckBlock):
            # Without trained batch norms the features would grow from block to block, beyond the
            # range of half precision.
            nn.init.constant_(module.conv3.norm.weight, 0.1)
    return BenchmarkModel(model, as_panoptic_model(model, cfg), cfg)


def make_image(height: int, seed: int = 0) -> dict:
    """Smooth noise at COCO's usual aspect ratio, as a model's input: uint8 in host memory.

    The width is 1.52 times the height: 800 x 1216.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 25, 38, generator=generator) * 255
    size = (height, round(height * 1.52))
    image = nn.functional.interpolate(coarse, size, mode="bilinear")[0].to(torch.uint8)
    return {"image": image}


def make_training_input(height: int, num_instances: int = 8, seed: int = 0) -> dict:
    """An image with boxes of all sizes, filled masks and stuff in stripes, for both models."""
    example = make_image(height, seed)
    size = tuple(example["image"].shape[1:])
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(num_instances, *size, dtype=torch.bool)
    for i, mask in enumerate(masks):
        h, w = (max(4, side * (i + 1) // (2 * num_instances)) for side in size)
        y, x = (
            int(torch.randint(side - extent + 1, (), generator=generator))
            for side, extent in zip(size, (h, w), strict=True)
        )
        mask[y : y + h, x : x + w] = True
    bit_masks = BitMasks(masks)
    instances = Instances(size, gt_boxes=bit_masks.get_bounding_boxes(), gt_masks=bit_masks)
    instances.gt_classes = torch.randint(THINGS, (num_instances,), generator=generator)
    stuff = torch.arange(size[0]) * STUFF_LABELS // size[0]
    return {
        **example,
        "instances": instances,
        "sem_seg": stuff[:, None].expand(size).contiguous(),
        "crowd_mask": torch.zeros(size, dtype=torch.bool),
    }


def make_instances(count: int, size: tuple[int, int], seed: int = 0) -> Instances:
    """Overlapping ellipses of all sizes, best first, with scores over any threshold of a merge."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    sides = torch.tensor([width, height])
    center = torch.rand(count, 2, generator=generator) * sides
    radius = sides / 2 ** (2 + 4 * torch.rand(count, 2, generator=generator))
    x = (torch.arange(width)[None, None] - center[:, 0, None, None]) / radius[:, 0, None, None]
    y = (torch.arange(height)[None, :, None] - center[:, 1, None, None]) / radius[:, 1, None, None]
    masks = x**2 + y**2 < 1
    instances = Instances(size, pred_masks=masks, pred_boxes=BitMasks(masks).get_bounding_boxes())
    instances.scores = torch.linspace(1, 0.5, count)
    instances.pred_classes = torch.randint(THINGS, (count,), generator=generator)
    return instances
