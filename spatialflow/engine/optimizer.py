"""The optimizer that a config names, and how its learning rate follows the batch size."""

from __future__ import annotations

import logging
from typing import NamedTuple

import detectron2.solver
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn


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
    """Detectron2's SGD, or AdamW on the same groups of parameters (SOLVER.OPTIMIZER).

    Detectron2's ``DefaultTrainer`` does not read SOLVER.OPTIMIZER; its ``build_optimizer`` can call
    this function.

    Args:
        cfg: SOLVER.* is read.
        model: whose parameters are trained.

    Raises:
        ValueError: another optimizer.
    """
    check_optimizer(cfg)
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD":
        return detectron2.solver.build_optimizer(cfg, model)
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.AdamW(groups, solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    return maybe_add_gradient_clipping(cfg, optimizer)


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
