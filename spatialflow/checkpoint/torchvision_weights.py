"""torchvision's ImageNet weights as a checkpoint to train from.

``spatialflow torchvision-weights`` is the command.

A config that trains from it has RGB, the mean and the deviation of torchvision and strides in the
3x3 convolutions, as configs/COCO/spatialflow_X_101_64x4d_DCN_SyncBN_20e_ms.yaml shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

PREFIX = "backbone.bottom_up."


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of torchvision's ResNet or ResNeXt to those of a model's backbone.

    The classifier is left out.
    """
    return {PREFIX + rename(key): value for key, value in state.items() if key[:3] != "fc."}


def rename(key: str) -> str:
    """Detectron2's name of a weight of torchvision's ResNet."""
    key = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", key)
    key = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", key)
    key = re.sub(r"bn(\d)", r"conv\1.norm", key)
    return key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
