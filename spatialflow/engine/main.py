"""Training and evaluation from the command line: the processes, and what each of them does."""

from __future__ import annotations

import argparse
import logging

from spatialflow.errors import message_for_user
from spatialflow.inference import load_model
from spatialflow.utils.user_modules import import_modules

from .launch import launch
from .setup import read_config, setup
from .trainer import Trainer


def run(args: argparse.Namespace) -> None:
    """Start the processes that the arguments ask for, and :func:`main` in each.

    Args:
        args: parsed arguments of :func:`spatialflow.engine.argument_parser`.

    Raises:
        UserError, FileNotFoundError, KeyError, ValueError: see ``launch``, ``setup``,
            ``load_model`` and ``Trainer``.
    """
    launch(
        main,
        args.num_gpus,
        args.num_machines,
        args.machine_rank,
        args.dist_url,
        args=(args,),
        device=read_config(args).MODEL.DEVICE,
    )


def main(args: argparse.Namespace) -> None:
    """What each process does: train, or evaluate with ``--eval-only``."""
    if not args.debug:
        logging.getLogger("detectron2.engine.train_loop").addFilter(_shorten)
    import_modules(args.modules)  # a started process has nothing of its parent's
    cfg = setup(args)
    if args.eval_only:
        Trainer.test(cfg, load_model(cfg, resume=args.resume))
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(args.resume)
    trainer.train()


def _shorten(record: logging.LogRecord) -> bool:
    """Take the traceback from what Detectron2's loop logs where the error is the user's mistake."""
    error = record.exc_info[1] if record.exc_info else None
    message = message_for_user(error) if isinstance(error, Exception) else None
    if message is not None:
        record.msg, record.args, record.exc_info = f"Training stopped: {message}", (), None
    return True
