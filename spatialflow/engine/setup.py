"""From command-line arguments to a config that can be run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

import spatialflow.modeling  # noqa: F401  registers the model
from spatialflow.config import check_device, load_config
from spatialflow.data import prepare_datasets

from .optimizer import SCALING_RULES, auto_scale_workers, check_optimizer

SCALED_KEYS = ("BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments: --config-file, --num-gpus, --resume, --eval-only and so on."""
    return default_argument_parser(
        epilog="""
Examples:
    train                          train_net.py --config-file C
    other values                   train_net.py --config-file C OUTPUT_DIR out MODEL.DEVICE cpu
    go on after a stop             train_net.py --config-file C --resume
    evaluate                       train_net.py --config-file C --eval-only MODEL.WEIGHTS W
    8 GPUs                         train_net.py --config-file C --num-gpus 8
    2 processes on the CPU         train_net.py --config-file C --num-gpus 2 MODEL.DEVICE cpu
    the same under torchrun        torchrun --nproc-per-node 2 train_net.py --config-file C ...
--num-gpus is the number of processes per machine, one for each GPU or, with MODEL.DEVICE cpu, on
the CPU. Batch sizes (SOLVER.IMS_PER_BATCH) are totals over all processes.
"""
    )


def read_config(args: argparse.Namespace) -> CfgNode:
    """The config of the command line, not frozen; see ``load_config`` for its errors."""
    if not args.config_file:
        raise ValueError("--config-file is missing; configs/ has some to start from.")
    return load_config(args.config_file, args.opts)


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, register its datasets, check what can be checked early, start the logs.

    Args:
        args: of :func:`argument_parser`.

    Returns:
        The frozen config.

    Raises:
        FileNotFoundError, KeyError, ValueError: see ``load_config``, ``prepare_datasets``,
            ``check_device`` and ``check_schedule``.
    """
    cfg = read_config(args)
    check_device(cfg)
    if args.eval_only:
        prepare_datasets(cfg, splits=("TEST",))
    else:
        prepare_datasets(cfg)
        check_schedule(cfg)
    cfg.freeze()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="spatialflow")
    default_setup(cfg, args)
    return cfg


def check_schedule(cfg: CfgNode) -> None:
    """Check that the learning rate belongs to the batch size, and the batch to the processes.

    Raises:
        ValueError: SOLVER.IMS_PER_BATCH is not SOLVER.REFERENCE_IMS_PER_BATCH, the message has
            the overrides of the optimizer's scaling rule; or it cannot be split over the processes;
            or SOLVER.OPTIMIZER is not known.
    """
    solver, world_size = cfg.SOLVER, comm.get_world_size()
    if solver.IMS_PER_BATCH < 1 or solver.IMS_PER_BATCH % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, the total over all processes; it "
            f"must be a positive multiple of their number, {world_size}."
        )
    check_optimizer(cfg)
    if solver.IMS_PER_BATCH == solver.REFERENCE_IMS_PER_BATCH:
        return
    rule = SCALING_RULES[solver.OPTIMIZER]
    known = f"SOLVER.REFERENCE_IMS_PER_BATCH {solver.IMS_PER_BATCH}"
    raise ValueError(
        f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, but learning rate and schedule are for "
        f"batches of {solver.REFERENCE_IMS_PER_BATCH} (SOLVER.REFERENCE_IMS_PER_BATCH). Append "
        f"the scaled ones, by {rule.name} scaling of the learning rate for {solver.OPTIMIZER}:\n"
        f"  {' '.join(_scaled_overrides(cfg))} {known}\n"
        f"or, when the config's values are meant for this batch size, only:\n  {known}"
    )


def _scaled_overrides(cfg: CfgNode) -> Sequence[str]:
    """``KEY VALUE`` of the schedule for cfg's batch size, each image being one worker's batch."""
    cfg = cfg.clone()
    cfg.defrost()
    batch = cfg.SOLVER.IMS_PER_BATCH
    cfg.SOLVER.IMS_PER_BATCH = cfg.SOLVER.REFERENCE_IMS_PER_BATCH
    cfg.SOLVER.REFERENCE_WORLD_SIZE = cfg.SOLVER.REFERENCE_IMS_PER_BATCH
    scaled = auto_scale_workers(cfg, batch).SOLVER
    values = {**scaled, "BASE_LR": float(f"{scaled.BASE_LR:.6g}"), "STEPS": f'"{scaled.STEPS}"'}
    return [f"SOLVER.{key} {values[key]}" for key in SCALED_KEYS]
