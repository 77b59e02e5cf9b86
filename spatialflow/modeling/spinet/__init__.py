"""SPINet: single-shot path integrated panoptic segmentation (Hwang, Oh and Kim, 2020).

Section, equation and table numbers in this folder are that paper's. What the paper leaves open is
marked as a reading.
"""

from .fpn import build_spinet_resnet_fpn_backbone
from .model import SPINet

__all__ = ["SPINet", "build_spinet_resnet_fpn_backbone"]
