"""Hybrid Task Cascade (HTC, Chen et al., CVPR 2019), registered as ``HybridTaskCascade``."""

from .mask_head import HTCMaskHead
from .model import HybridTaskCascade
from .roi_heads import HTCROIHeads
from .semantic_head import FusedSemanticHead

__all__ = ["FusedSemanticHead", "HTCMaskHead", "HTCROIHeads", "HybridTaskCascade"]
