"""Which images of a batch run together.

On a CPU a larger batch runs in parts: from :data:`PIXELS_AT_A_TIME_ON_CPU` on a ResNet's largest
features have more than the 32 MB that glibc keeps for the next layer, and to get memory from the
system anew takes longer than a batch saves (docs/PERFORMANCE.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
PIXELS_AT_A_TIME_ON_CPU = 2**19


def groups_of_one_size(
    sizes: Sequence[tuple[int, int]], unit: int, device: torch.device
) -> list[list[int]]:
    """Indices of the images that run together.

    Args:
        sizes: (height, width) of each image.
        unit: images are padded to multiples of it.
        device: device on which they run.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    unit = max(unit, 1)
    for i, (height, width) in enumerate(sizes):
        padded = math.ceil(height / unit) * unit, math.ceil(width / unit) * unit
        groups.setdefault(padded, []).append(i)
    return [part for size, group in groups.items() for part in split_batch(group, size, device)]


def split_batch(batch: list[T], size: tuple[int, int], device: torch.device) -> list[list[T]]:
    """The parts of a batch of images that run one after the other.

    Args:
        batch: one entry an image.
        size: (height, width) of each image.
        device: device on which they run.
    """
    step = len(batch)
    if device.type == "cpu":
        step = max(1, PIXELS_AT_A_TIME_ON_CPU // (size[0] * size[1]))
    return [batch[i : i + step] for i in range(0, len(batch), step)]
