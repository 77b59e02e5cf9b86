"""The resize of the training pipeline, to the same pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

_BITS = 11
_ONE = 1 << _BITS
"""OpenCV's fixed point of the weights in a bilinear resize of bytes."""


def input_size(height: int, width: int, rule: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the network's input for a picture.

    Args:
        height, width: of the picture.
        rule: see :attr:`spatialflow_runtime.Metadata.resize`.
    """
    if "height" in rule:
        return rule["height"], rule["width"]
    if not rule.get("shorter"):
        return height, width
    shorter, longer = float(rule["shorter"]), float(rule["longer"])
    scale = shorter / min(height, width)
    sides = (shorter, scale * width) if height < width else (scale * height, shorter)
    if max(sides) > longer:
        scale = longer / max(sides)
        sides = (sides[0] * scale, sides[1] * scale)
    return max(int(sides[0] + 0.5), 1), max(int(sides[1] + 0.5), 1)


def resize(image: np.ndarray, rule: dict[str, Any]) -> np.ndarray:
    """A picture (H, W, 3) uint8 as the network's input (h, w, 3) uint8."""
    height, width = input_size(image.shape[0], image.shape[1], rule)
    if (height, width) == image.shape[:2]:
        return np.ascontiguousarray(image)
    if rule["library"] == "cv2":
        return _bilinear_without_antialiasing(image, height, width)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _bilinear_without_antialiasing(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """As OpenCV's INTER_LINEAR for bytes, in its fixed point."""
    first, second, weights = _neighbours(image.shape[1], width)
    rows = image[:, first].astype(np.int32) * weights[0][None, :, None]
    rows += image[:, second].astype(np.int32) * weights[1][None, :, None]
    first, second, weights = _neighbours(image.shape[0], height)
    upper, lower = (
        ((rows[at] >> 4) * weight[:, None, None]) >> 16
        for at, weight in ((first, weights[0]), (second, weights[1]))
    )
    return np.clip((upper + lower + 2) >> 2, 0, 255).astype(np.uint8)


def _neighbours(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel the two old ones it lies between, and their weights (2, new_size)."""
    at = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    at = at.astype(np.float32)
    first = np.floor(at).astype(np.int64)
    share = at - first
    share[(first < 0) | (first >= size - 1)] = 0
    first = first.clip(0, size - 1)
    weights = np.rint(np.stack([1 - share, share]) * _ONE).astype(np.int32)
    return first, (first + 1).clip(max=size - 1), weights
