"""Detectron2's models with few channels and random weights that find something."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from spatialflow.config import load_config
from spatialflow.model_zoo import get_config_file

THINGS, STUFF = 3, 5
KINDS = {
    "Panoptic FPN": {"meta_arch": "PanopticFPN"},
    "Mask R-CNN": {},
    "Cascade Mask R-CNN": {"heads": "CascadeROIHeads"},
    "Faster R-CNN": {"mask_on": False},
}
"""Arguments of :func:`rcnn_config` by name of the model."""


def rcnn_config(
    meta_arch="GeneralizedRCNN",
    heads="StandardROIHeads",
    mask_on=True,
    things=THINGS,
    stuff=STUFF,
) -> CfgNode:
    """Detectron2's config of the model, for images of about 100 pixels."""
    cfg = load_config(get_config_file("toy/panoptic_fpn_toy.yaml"))
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = meta_arch, heads
    cfg.MODEL.MASK_ON, cfg.MODEL.DEVICE = mask_on, "cpu"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in heads
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32, 32
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = things, stuff
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    return cfg


def small_rcnn(cfg: CfgNode) -> nn.Module:
    """The model in evaluation mode; its classes have scores and its masks are not all one half."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_score.weight", "predictor.weight")):
            nn.init.normal_(parameter, std=0.3)
    return model
