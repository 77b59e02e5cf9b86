"""The model. Importing this package registers it with Detectron2."""

from .backbone import build_spatialflow_resnet_fpn_backbone
from .spatialflow import SpatialFlow

__all__ = ["SpatialFlow", "build_spatialflow_resnet_fpn_backbone"]
