"""``spatialflow COMMAND ...``: finds the command, imports its module, runs it.

Only the module of the command that is run is imported. :mod:`spatialflow.tools` says what such a
module looks like.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import spatialflow
from spatialflow.errors import UserError, exit_on_user_error
from spatialflow.utils.user_modules import import_modules


class Command(NamedTuple):
    """Where a command is, and its line in ``spatialflow --help``."""

    module: str
    help: str


COMMANDS = {
    "train": Command("train", "train a model, or go on with --resume"),
    "eval": Command("evaluate", "evaluate weights: PQ, AP and mIoU"),
    "demo": Command("demo", "segment pictures"),
    "video": Command("video", "segment a video; ids stay with the object"),
    "predict": Command("predict.command", "many pictures, on several machines, resumable"),
    "serve": Command("serve.command", "a page to drop a picture on, and an API"),
    "check": Command("check.command", "check a dataset before training on it"),
    "convert": Command("convert.command", "bring a dataset into COCO panoptic format"),
    "toy": Command("toy", "generate the toy scenes"),
    "score": Command("score", "PQ of predictions on disk"),
    "explain": Command("explain", "where PQ is lost: classes, misses, masks, merge"),
    "sweep": Command("sweep", "PQ at other thresholds of the merge"),
    "submit": Command("submission", "the zip that COCO's or Cityscapes' server takes"),
    "report": Command("report.command", "an evaluation as one HTML page"),
    "draw": Command("draw", "image, ground truth and prediction side by side"),
    "heatmap": Command("class_activation", "class activation maps of several models"),
    "export": Command("export", "a model as a file that runs without PyTorch"),
    "benchmark": Command("benchmark.command", "speed beside Detectron2's Panoptic FPN"),
    "convert-checkpoint": Command("convert_checkpoint", "the authors' weights for this model"),
    "convert-weights": Command("convert_weights", "weights alone: .safetensors, half precision"),
    "torchvision-weights": Command("torchvision_weights", "torchvision's backbones to train from"),
    "zoo": Command("zoo.command", "print the table of all configs"),
    "doctor": Command("doctor", "what is installed, what is missing, and what to do"),
}
"""By name; modules are in ``spatialflow.tools``."""

DEBUG = "--debug"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code.

    Args:
        argv: default: that of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first = next((i for i, argument in enumerate(argv) if argument != DEBUG), None)
    if first is None:
        _parser().print_help(sys.stderr)
        return 2
    name = _parser().parse_args([argv.pop(first)]).command
    return run_command(name, argv)


def run_command(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        name: name of the command.
        argv: its arguments; default: those of the process. ``--debug`` can be anywhere.
        prog: the name in its help; default: ``spatialflow NAME``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with exit_on_user_error(DEBUG in argv):
        module = load_command(name)
        parser = module.parser()
        parser.prog = prog or parser.prog
        parser.add_argument(DEBUG, action="store_true", help="show the traceback of an error")
        # Behind overrides or those of a subcommand it would not reach this parser.
        debug = [DEBUG] if DEBUG in argv else []
        args = parser.parse_args([*debug, *(argument for argument in argv if argument != DEBUG)])
        import_modules(getattr(args, "modules", ()))
        return module.run(args) or 0


def load_command(name: str) -> ModuleType:
    """Import the module of a command.

    Raises:
        UserError: a package that it needs is not installed.
    """
    try:
        return import_module(f"spatialflow.tools.{COMMANDS[name].module}")
    except ModuleNotFoundError as e:
        if e.name is None or e.name.split(".")[0] == "spatialflow":
            raise
        raise UserError(
            f"spatialflow {name} needs {e.name}, which is not installed for {sys.executable}: run "
            "`make install` in SpatialFlow's repository and use the Python of its .venv. "
            "`spatialflow doctor` says what else is missing."
        ) from e


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="spatialflow",
        usage="spatialflow [-h] [--version] [--debug] COMMAND ...",
        description="Panoptic segmentation with SpatialFlow on Detectron2.",
        epilog=f"commands:\n{table}\n\n`spatialflow COMMAND --help` has examples and options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"spatialflow {spatialflow.__version__}"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of an error")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="see below")
    return parser
