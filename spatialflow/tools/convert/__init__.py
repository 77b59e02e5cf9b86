"""Converters of datasets into COCO panoptic format: ``spatialflow convert``."""

from .ade20k import convert_ade20k
from .camvid import convert_camvid
from .cityscapes import convert_cityscapes
from .mapillary import convert_mapillary
from .pairs import Pairs, convert_pairs
from .writer import Dataset

__all__ = [
    "Dataset",
    "Pairs",
    "convert_ade20k",
    "convert_camvid",
    "convert_cityscapes",
    "convert_mapillary",
    "convert_pairs",
]
