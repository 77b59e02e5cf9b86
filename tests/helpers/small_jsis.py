"""A JSIS-Net with few channels and random weights that finds something."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import nn

from spatialflow.config import load_config
from spatialflow.model_zoo import get_config_file
from spatialflow.modeling import JSISNet

THINGS, STUFF = 3, 5


def jsis_config(*opts: object) -> CfgNode:
    """The toy config for images of about 100 pixels; ``opts``: overrides KEY, VALUE, ..."""
    cfg = load_config(get_config_file("toy/jsis_net_toy.yaml"))
    cfg.MODEL.JSIS_NET.CHANNELS = cfg.MODEL.JSIS_NET.REGION_WIDTH = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = THINGS, STUFF
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.merge_from_list([str(x) for x in opts])
    return cfg


def small_jsis(*opts: object) -> JSISNet:
    """The model in evaluation mode; classes have scores, masks and labels are not all the same."""
    torch.manual_seed(0)
    model = build_model(jsis_config(*opts)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_score.weight", "predictor.weight")):
            nn.init.normal_(parameter, std=0.3)
    return model


def scene(*boxes: tuple[int, int, int, int], size=(96, 128), seed=0) -> dict:
    """A training image: filled boxes x1 y1 x2 y2 of the classes 0, 1, ... on two stuff labels."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    labels = torch.full(size, 2)
    labels[size[0] // 2 :] = 4
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    labels[masks.any(dim=0)] = 0
    things = Instances(size, gt_masks=BitMasks(masks))
    things.gt_boxes = things.gt_masks.get_bounding_boxes()
    things.gt_classes = torch.arange(len(boxes)) % THINGS
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    return {"image": image, "instances": things, "sem_seg": labels}
