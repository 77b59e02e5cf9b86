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
from spatialflow.errors import UsageError
from spatialflow.utils.command_parser import CommandParser, add_import_argument

from .optimizer import SCALING_RULES, auto_scale_workers, check_optimizer

SCALED_KEYS = ("BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")


EXAMPLES = """
%(prog)s --config-file configs/toy/spatialflow_toy.yaml
# other values: overrides come last
%(prog)s --config-file configs/toy/spatialflow_toy.yaml OUTPUT_DIR out SOLVER.MAX_ITER 500
# go on after a stop
%(prog)s --config-file configs/toy/spatialflow_toy.yaml --resume
# evaluate weights
%(prog)s --config-file C --eval-only MODEL.WEIGHTS output/toy/model_final.pth
# your own backbone, head or model, which my_model.py registers
%(prog)s --import my_model.py --config-file my_config.yaml
# 8 GPUs; 2 processes on the CPU; the same under torchrun
%(prog)s --config-file configs/COCO/spatialflow_R_50_20e.yaml --num-gpus 8
%(prog)s --config-file configs/toy/spatialflow_toy.yaml --num-gpus 2 MODEL.DEVICE cpu
torchrun --nproc-per-node 2 -m spatialflow train --config-file configs/toy/spatialflow_toy.yaml
"""
EPILOG = """
--num-gpus is the number of processes per machine, one for each GPU or, with MODEL.DEVICE cpu, on
the CPU. Batch sizes (SOLVER.IMS_PER_BATCH) are totals over all processes.
"""


def argument_parser(prog: str = "train_net.py", examples: str = EXAMPLES) -> CommandParser:
    """Detectron2's arguments (--config-file, --num-gpus, --resume and so on), and --import.

    Args:
        prog: name of the command.
        examples: usage examples for its help.
    """
    parser = CommandParser(
        prog=prog,
        examples=examples,
        epilog=EPILOG,
        parents=[default_argument_parser()],
        add_help=False,  # the parent has it
    )
    add_import_argument(parser)
    return parser


def read_config(args: argparse.Namespace) -> CfgNode:
    """The config of the command line, not frozen; see ``load_config`` for its errors."""
    if not args.config_file:
        raise UsageError("--config-file is missing; configs/ has some to start from.")
    return load_config(args.config_file, args.opts)


def setup(args: argparse.Namespace) -> CfgNode:
    """Read the config, register its datasets, check what can be checked early, start the logs.

    Args:
        args: parsed arguments of :func:`argument_parser`.

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
