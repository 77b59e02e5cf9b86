"""JSIS-Net (de Geus et al., COCO and Mapillary Joint Recognition Challenge 2018).

What the paper leaves open and a relative of its authors' code or this project decides is marked
*Reading* where it is decided.
"""

from .merge import PixelwiseMerge
from .model import JSISNet

__all__ = ["JSISNet", "PixelwiseMerge"]
