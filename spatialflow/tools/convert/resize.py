"""Writing smaller images, and the label maps that belong to them."""

from __future__ import annotations

import os
import shutil

import cv2
import numpy as np

from spatialflow.data.mapper import read_image
from spatialflow.utils.files import replacing


def limited_size(height: int, width: int, max_size: int) -> tuple[int, int]:
    """Height and width with at most ``max_size`` pixels on the longer side; never larger ones."""
    scale = min(1, max_size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def write_resized(image: str, size: tuple[int, int], output: str) -> None:
    """Write an image file at another size.

    Args:
        image: path of the image.
        size: (height, width) to write.
        output: path to write to, with the ending of the format.
    """
    pixels = cv2.resize(read_image(image, "BGR"), size[::-1], interpolation=cv2.INTER_AREA)
    with replacing(output) as path:
        cv2.imencode(os.path.splitext(output)[1], pixels)[1].tofile(path)


def copy_file(file: str, output: str) -> None:
    """Copy a file, which appears under its new name when it is complete."""
    with replacing(output) as path:
        shutil.copyfile(file, path)


def resize_map(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An (H, W) int32 map at another (height, width); every value is one that was there."""
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
