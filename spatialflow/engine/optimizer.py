"""The optimizer that a config names, and how its learning rate follows the batch size."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from spatialflow.modeling.flows import Flow
from spatialflow.modeling.timm_backbone import TimmBackbone


class ScalingRule(NamedTuple):
    """For k times the batch the learning rate is multiplied by k to the power ``exponent``."""

    name: str
    exponent: float


SCALING_RULES = {
    "SGD": ScalingRule("linear", 1.0),  # Goyal et al., arXiv:1706.02677
    "AdamW": ScalingRule("square-root", 0.5),  # Malladi et al., arXiv:2205.10287
}
"""Values of SOLVER.OPTIMIZER, and how the learning rate follows the batch size."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as in Detectron2, or AdamW on the same groups of parameters (SOLVER.OPTIMIZER).

    SOLVER.BACKBONE_MULTIPLIER and SOLVER.LAYER_DECAY lower the learning rate of the backbone, and
    SOLVER.FLOW_MULTIPLIER that of the flows.

    Detectron2's ``DefaultTrainer`` does not read SOLVER.OPTIMIZER; its ``build_optimizer`` can call
    this function.

    Args:
        cfg: SOLVER.* is read.
        model: whose parameters are trained.

    Raises:
        ValueError: another optimizer, or a decay by layer that the model does not have.
    """
    check_optimizer(cfg)
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=_lr_factor(cfg, model),
    )
    optimizer: torch.optim.Optimizer
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            groups,
            solver.BASE_LR,
            momentum=solver.MOMENTUM,
            nesterov=solver.NESTEROV,
            weight_decay=solver.WEIGHT_DECAY,
            foreach=True,
        )
    else:
        optimizer = torch.optim.AdamW(groups, solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    return maybe_add_gradient_clipping(cfg, optimizer)


def _lr_factor(cfg: CfgNode, model: nn.Module) -> Callable[[str], float] | None:
    """The factor of a parameter's learning rate, by its name; None: 1 for all.

    Raises:
        ValueError: a decay by layer, and no backbone of timm, or SOLVER.BIAS_LR_FACTOR besides.
    """
    solver = cfg.SOLVER
    if solver.BACKBONE_MULTIPLIER == solver.LAYER_DECAY == solver.FLOW_MULTIPLIER == 1:
        return None
    if solver.BIAS_LR_FACTOR not in (None, 1):
        raise ValueError(
            f"SOLVER.BIAS_LR_FACTOR is {solver.BIAS_LR_FACTOR}, which cannot be combined with "
            "SOLVER.BACKBONE_MULTIPLIER, SOLVER.LAYER_DECAY and SOLVER.FLOW_MULTIPLIER; set it to "
            "1."
        )
    of_backbone = _backbone_factor(model, solver.BACKBONE_MULTIPLIER, solver.LAYER_DECAY)
    flows = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, Flow))

    def factor(name: str) -> float:
        return solver.FLOW_MULTIPLIER if name.startswith(flows) else of_backbone(name)

    return factor


def _backbone_factor(model: nn.Module, multiplier: float, decay: float) -> Callable[[str], float]:
    part, prefix = _bottom_up(model)
    if decay == 1:
        return lambda name: multiplier if name.startswith(prefix) else 1.0
    if not isinstance(part, TimmBackbone):
        raise ValueError(
            f"SOLVER.LAYER_DECAY is {decay}, but {type(part).__name__} does not number its layers, "
            "as backbones of timm do; set it to 1."
        )
    layers = {f"{prefix}model.{name}": layer for name, layer in part.layer_ids().items()}
    top = 1 + max(layers.values())
    return lambda name: multiplier * decay ** (top - layers[name]) if name in layers else 1.0


def _bottom_up(model: nn.Module) -> tuple[nn.Module | None, str]:
    """The backbone without its pyramid, and the prefix of the names of its parameters."""
    backbone = getattr(model, "backbone", None)
    for name in ("bottom_up", "net"):  # of an FPN, of a simple feature pyramid
        if hasattr(backbone, name):
            return getattr(backbone, name), f"backbone.{name}."
    return backbone, "backbone."


def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
    """Detectron2's ``DefaultTrainer.auto_scale_workers``, with the optimizer's own scaling rule.

    Args:
        cfg: SOLVER.REFERENCE_WORLD_SIZE is what its schedule is for.
        num_workers: processes that it is wanted for.

    Returns:
        A new config, or the same where nothing is to be scaled.

    Raises:
        ValueError: SOLVER.OPTIMIZER is not known.
    """
    check_optimizer(cfg)
    scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
    ratio = scaled.SOLVER.IMS_PER_BATCH / cfg.SOLVER.IMS_PER_BATCH
    rule = SCALING_RULES[cfg.SOLVER.OPTIMIZER]
    if ratio == 1 or rule.exponent == 1:
        return scaled
    frozen = scaled.is_frozen()
    scaled.defrost()
    scaled.SOLVER.BASE_LR = cfg.SOLVER.BASE_LR * ratio**rule.exponent
    if frozen:
        scaled.freeze()
    logging.getLogger(__name__).info(
        f"{rule.name} scaling for {cfg.SOLVER.OPTIMIZER}: learning_rate={scaled.SOLVER.BASE_LR}"
    )
    return scaled


def check_optimizer(cfg: CfgNode) -> None:
    """Raise a ValueError when SOLVER.OPTIMIZER is not known."""
    if cfg.SOLVER.OPTIMIZER not in SCALING_RULES:
        known = " or ".join(map(repr, SCALING_RULES))
        raise ValueError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; give {known}.")
