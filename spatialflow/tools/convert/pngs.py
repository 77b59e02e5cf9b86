"""Reading PNGs of class values and of instance numbers."""

from __future__ import annotations

import numpy as np
from PIL import Image

_GREY_MODES = ("1", "L", "P", "I", "I;16")  # P: values are palette indices


def read_values(path: str, size: tuple[int, int]) -> np.ndarray:
    """The values of a grey PNG, of 8 or 16 bits, or one with a palette.

    Args:
        path: the PNG.
        size: (height, width) that it must have.

    Returns:
        (H, W) int32.

    Raises:
        ValueError: it cannot be read, has colours, or another size.
    """
    values, mode = _read(path, size)
    if mode not in _GREY_MODES:
        raise ValueError(
            f"{path} has colours (Pillow's mode {mode}); grey values or palette indices are needed."
        )
    return values.astype(np.int32)


def read_channels(path: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) int32 red, green and blue of a PNG of colours; otherwise as :func:`read_values`."""
    values, mode = _read(path, size)
    if mode not in ("RGB", "RGBA"):
        raise ValueError(f"{path} must be an RGB PNG; Pillow's mode of it is {mode}.")
    return values[..., :3].astype(np.int32)


def read_numbers(path: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W) int32 instance numbers: grey values, palette indices, or R + 256 G + 65536 B."""
    values, mode = _read(path, size)
    if mode in ("RGB", "RGBA"):
        return values[..., :3].astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    return read_values(path, size)


def _read(path: str, size: tuple[int, int]) -> tuple[np.ndarray, str]:
    try:
        with Image.open(path) as image:
            values, mode = np.asarray(image), image.mode
    except (OSError, SyntaxError) as e:  # Pillow raises either for damaged files
        raise ValueError(f"{path} cannot be read, replace it: {e}") from e
    if values.shape[:2] != size:
        raise ValueError(
            f"{path} is {values.shape[1]}x{values.shape[0]} (width x height), but its image is "
            f"{size[1]}x{size[0]}. They must have the same size."
        )
    return values, mode
