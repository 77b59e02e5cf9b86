"""The layers that depend on the classes, for training on other classes than the weights have.

The papers take a COCO model to Cityscapes by training these layers alone at first (Sec. IV-C2).
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from .adapters import configured_class
from .timm_backbone import TimmBackbone


def class_layers_of(cfg: CfgNode) -> tuple[str, ...]:
    """Prefixes of the names of the parameters that depend on the classes, in a config's model.

    Raises:
        ValueError: the model names none, and MODEL.CLASS_LAYERS asks for them; or it is not a
            :class:`spatialflow.modeling.PanopticModel`.
    """
    prefixes = configured_class(cfg).class_layers
    wanted = [key for key, on in cfg.MODEL.CLASS_LAYERS.items() if on]
    if wanted and not prefixes:
        raise ValueError(
            f"MODEL.CLASS_LAYERS.{wanted[0]} is True, but {cfg.MODEL.META_ARCHITECTURE} does not "
            "name the layers that depend on the classes (class_layers of its PanopticModel)."
        )
    return prefixes


def train_only_class_layers(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Freeze everything else, statistics of batch norms included.

    Args:
        model: changed in place.
        prefixes: name prefixes of the parameters that stay trainable, see
            :attr:`spatialflow.modeling.PanopticModel.class_layers`.
    """
    _freeze_batch_norms(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(prefixes)))


def _freeze_batch_norms(module: nn.Module) -> None:
    """Detectron2's conversion, but for backbones of timm, see :class:`TimmBackbone`."""
    for name, child in module.named_children():
        if isinstance(child, TimmBackbone):
            child.norm_eval = True
            child.train(child.training)
        elif any(isinstance(part, TimmBackbone) for part in child.modules()):
            _freeze_batch_norms(child)
        else:
            setattr(module, name, FrozenBatchNorm2d.convert_frozen_batchnorm(child))
