"""What is measured: the two models, with weights that give both the same work, and their inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import BitMasks, Instances
from torch import nn

from spatialflow.config import config_dir, load_config
from spatialflow.modeling.detection import DensePredictions

CONFIGS = {
    "SpatialFlow": "COCO/spatialflow_R_50_20e.yaml",
    "Panoptic FPN": "panoptic_fpn/panoptic_fpn_R_50_20e.yaml",
}
THINGS, STUFF_LABELS = 80, 54
DETECTIONS, CONFIDENT = 100, range(15, 31)
"""How many detections a model gives, and how many of them may pass its confidence threshold."""

Detect = Callable[[float, float], Instances]
"""Detections by the scale and the shift of the class logits."""


def build(name: str, device: str) -> nn.Module:
    """A model of :data:`CONFIGS` with COCO's classes and random weights, in evaluation mode."""
    classes = {"RETINANET": THINGS, "ROI_HEADS": THINGS, "SEM_SEG_HEAD": STUFF_LABELS}
    opts = [x for part, n in classes.items() for x in (f"MODEL.{part}.NUM_CLASSES", n)]
    cfg = load_config(
        str(config_dir() / CONFIGS[name]), [*opts, "MODEL.DEVICE", device, "MODEL.WEIGHTS", ""]
    )
    cfg.TEST.DETECTIONS_PER_IMAGE = DETECTIONS
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for module in model.modules():
        if isinstance(module, BottleneckBlock):
            # Without trained batch norms the features would grow from block to block, beyond the
            # range of half precision.
            module.conv3.norm.weight.fill_(0.1)
    return model


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


@torch.no_grad()
def calibrate(name: str, model: nn.Module, image: dict) -> dict[str, float]:
    """Set the layer of the class scores so that both models give the same work on an image.

    Of the random layer only the scale changes, and the bias: of all classes in SpatialFlow, of the
    background in Panoptic FPN.

    Returns:
        How many ``detections`` there are, how many of them are ``confident``, and ``box_share``,
        the mean area of their boxes as a share of the image.

    Raises:
        RuntimeError: no weights were found; the image is too small.
    """
    spatialflow = name == "SpatialFlow"
    make = _spatialflow_detections if spatialflow else _panoptic_fpn_detections
    detections, layer, spread = make(model, image)
    threshold = (
        model.merge_settings.score_thresh if spatialflow else model.combine_instances_score_thresh
    )
    scale, shift = _search(detections, threshold, spread)
    layer.weight.mul_(scale)
    if spatialflow:
        layer.bias.fill_(shift)
    else:
        layer.bias[-1] = -shift
    instances = model([image])[0]["instances"]
    found = {"detections": len(instances), "confident": _confident(instances, threshold)}
    if found["detections"] != DETECTIONS or found["confident"] not in CONFIDENT:
        raise RuntimeError(f"{name} has {found} on an image of {tuple(image['image'].shape)}.")
    area = instances.image_size[0] * instances.image_size[1]
    return {**found, "box_share": float(instances.pred_boxes.area().mean() / area)}


def _search(detections: Detect, threshold: float, spread: float) -> tuple[float, float]:
    """The scale and the shift of the class logits, the largest scale first."""
    middle = (CONFIDENT.start + CONFIDENT.stop) // 2
    for scale in (x / spread for x in (4, 2.8, 2, 1.4, 1, 0.7, 0.5, 0.35, 0.25)):
        low, high = -60.0, 60.0
        while high - low > 1e-3:
            shift = (low + high) / 2
            found = detections(scale, shift)
            confident = _confident(found, threshold)
            if len(found) == DETECTIONS and confident in CONFIDENT:
                return scale, shift
            low, high = (low, shift) if confident > middle else (shift, high)
    raise RuntimeError("No weights give the wanted detections: the image is too small.")


def _confident(instances: Instances, threshold: float) -> int:
    return int((instances.scores >= threshold).sum())


def _spatialflow_detections(model: nn.Module, image: dict) -> tuple[Detect, nn.Module, float]:
    """Detections by scale and shift, the layer they belong to, and the spread of its logits."""
    images = model.preprocess_image([image])
    features = model.extract_features(images)
    layer = model.detector.cls_score
    nn.init.zeros_(layer.bias)
    logits, deltas = model.detector(features.cls, features.reg)
    anchors, sizes = model.detector.anchor_generator(features.cls), images.image_sizes

    def detections(scale: float, shift: float) -> Instances:
        moved = DensePredictions([x * scale + shift for x in logits], deltas)
        return model.detector.inference(moved, anchors, sizes, sizes)[0]

    return detections, layer, torch.cat([x.flatten() for x in logits]).std().item()


def _panoptic_fpn_detections(model: nn.Module, image: dict) -> tuple[Detect, nn.Module, float]:
    """As :func:`_spatialflow_detections`; the shift is that of the background, negative."""
    images = model.preprocess_image([image])
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    heads = model.roi_heads
    pooled = heads.box_pooler(
        [features[f] for f in heads.box_in_features], [p.proposal_boxes for p in proposals]
    )
    layer = heads.box_predictor.cls_score
    nn.init.zeros_(layer.bias)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    background = torch.zeros_like(logits[0])
    background[-1] = 1.0

    def detections(scale: float, shift: float) -> Instances:
        moved = logits * scale - shift * background
        return heads.box_predictor.inference((moved, deltas), proposals)[0][0]

    return detections, layer, logits.std().item()
