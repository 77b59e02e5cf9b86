"""The models. Importing this package registers them with Detectron2."""

from . import rcnn, timm_backbone, timm_vit  # noqa: F401  register adapters and backbones
from .adapters import as_panoptic_model, register_adapter
from .backbone import build_spatialflow_resnet_fpn_backbone
from .htc import HybridTaskCascade
from .jsis_net import JSISNet
from .panoptic import MERGE_REGISTRY, HeuristicMerge, Merge
from .panoptic_model import PanopticModel
from .spatialflow import SpatialFlow
from .spinet import SPINet

__all__ = [
    "MERGE_REGISTRY",
    "HeuristicMerge",
    "JSISNet",
    "HybridTaskCascade",
    "Merge",
    "PanopticModel",
    "SPINet",
    "SpatialFlow",
    "as_panoptic_model",
    "build_spatialflow_resnet_fpn_backbone",
    "register_adapter",
]
