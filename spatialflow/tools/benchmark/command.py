"""Time SpatialFlow R50 and Detectron2's Panoptic FPN R50, in one process and in turn.

End to end (image in, panoptic map and segments out, batch 1), in batches of 8, step by step
beside what the arithmetic and the memory of the device allow, view by view in multi-scale testing,
and in training.
Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import detectron2
import torch
import torchvision

import spatialflow
from spatialflow.errors import UsageError
from spatialflow.utils.command_parser import CommandParser, add_import_argument

from .floors import measure_rates
from .measure import by_batch, by_step, by_view, end_to_end, merges, training
from .subjects import BASELINE, CONFIGS, build
from .systems import compare_systems, systems_of
from .tables import as_markdown, systems_as_markdown

_NOT_SETTINGS = ("json_out", "markdown", "modules", "debug")

EXAMPLES = """
%(prog)s --quick
%(prog)s --device cpu --heights 800 --exported
%(prog)s --device cuda --json-out speed.json --markdown speed.md
# only parameters, multiply-adds, time and memory, of the papers' systems or of others
%(prog)s --systems
%(prog)s --systems toy/spatialflow_toy.yaml toy/htc_toy.yaml --quick
"""


def parser() -> CommandParser:
    """``--quick`` changes the defaults of the others."""
    parser = CommandParser(
        prog="spatialflow benchmark", examples=EXAMPLES, description=__doc__.split("\n")[0]
    )
    add_import_argument(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--config-file",
        nargs="+",
        default=[],
        metavar="CONFIG",
        help="files, or names in the model zoo, of the models beside Panoptic FPN (default: "
        "SpatialFlow R50)",
    )
    parser.add_argument(
        "--systems",
        nargs="*",
        metavar="CONFIG",
        help="only one table, of parameters, multiply-adds, time and peak memory, of these files "
        "or names in the model zoo (default: the papers' systems with a ResNet-50)",
    )
    parser.add_argument(
        "--exported",
        action="store_true",
        help="also the exported models, by onnxruntime and OpenVINO (minutes more a height)",
    )
    parser.add_argument("--quick", action="store_true", help="a few runs on small images")
    parser.add_argument("--runs", type=int, help="timed runs end to end (default: 50; quick: 5)")
    parser.add_argument(
        "--heights", type=int, nargs="+", help="shorter sides (default: 800 600 400; quick: 160)"
    )
    parser.add_argument("--training-runs", type=int, help="default: 10; quick: 2; 0: none")
    parser.add_argument("--view-runs", type=int, help="default: 3; quick: 2; 0: none")
    parser.add_argument("--batch-size", type=int, default=1, help="in training")
    parser.add_argument("--json-out", type=Path, help="file for the numbers")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables, and write what the arguments ask for."""
    _complete(args)
    if args.systems is None:
        results = measure(args)
        text = as_markdown(results)
    else:
        results = measure_systems(args)
        text = systems_as_markdown(results)
    print(text)
    if args.json_out:
        args.json_out.write_text(json.dumps(results, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text)


def _complete(args: argparse.Namespace) -> None:
    """Fill in the defaults that depend on ``--quick``."""
    runs, heights = (5, [160]) if args.quick else (50, [800, 600, 400])
    training_runs, view_runs = (2, 2) if args.quick else (10, 3)
    args.runs = args.runs or runs
    args.heights = args.heights or heights
    args.training_runs = training_runs if args.training_runs is None else args.training_runs
    args.view_runs = view_runs if args.view_runs is None else args.view_runs
    if args.runs < 2 or 1 in (args.training_runs, args.view_runs):
        raise UsageError("There are no quartiles of a single run; give at least 2.")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All results with device, versions and settings; times in seconds, memory in bytes.

    Steps are those of the first height, with a fifth of the runs; batches are of the smallest
    height, with a tenth.
    """
    device = args.device
    configs = {Path(config).stem: config for config in args.config_file}
    configs = {**(configs or CONFIGS), **BASELINE}
    models = {name: build(config, device) for name, config in configs.items()}
    first, (baseline,) = next(iter(models)), BASELINE
    rates = measure_rates(device, args.quick)
    rows, steps = [], []
    for height in args.heights:
        with tempfile.TemporaryDirectory() as folder:
            export_to = Path(folder) if args.exported else None
            rows += end_to_end(models, baseline, height, device, args.runs, export_to)
        if height == args.heights[0]:
            steps = by_step(models, height, device, max(2, args.runs // 5), rates)
    height, views, trained = args.heights[0], [], []
    runs = max(2, args.runs // 10)
    batches = by_batch(first, models[first], min(args.heights), device, runs)
    if args.view_runs:
        views = by_view(first, models[first], height, device, args.view_runs)
    if args.training_runs:
        trained = training(models, baseline, height, device, args.training_runs, args.batch_size)
    return _circumstances(args) | {
        "rates": vars(rates),
        "end_to_end": rows,
        "batches": batches,
        "steps": steps,
        "merges": merges(device, args.runs),
        "views": views,
        "training": trained,
    }


def measure_systems(args: argparse.Namespace) -> dict[str, Any]:
    """The table of ``--systems`` at each height, with device, versions and settings."""
    configs = systems_of(args.systems)
    rows = []
    for height in args.heights:
        rows += compare_systems(configs, height, args.device, args.runs)
    return _circumstances(args) | {"systems": rows}


def _circumstances(args: argparse.Namespace) -> dict[str, Any]:
    settings = {k: v for k, v in vars(args).items() if k not in _NOT_SETTINGS}
    return circumstances(args.device) | {"settings": settings}


def circumstances(device: str) -> dict[str, Any]:
    """Date, name of the device, and versions."""
    return {
        "date": date.today().isoformat(),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "Python": platform.python_version(),
            "PyTorch": torch.__version__,
            "torchvision": torchvision.__version__,
            "Detectron2": detectron2.__version__,
            "SpatialFlow": spatialflow.__version__,
        },
    }


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo")
    names = lines.read_text().splitlines() if lines.exists() else []
    found = (x.split(":")[1].strip() for x in names if x.startswith("model name"))
    return next(found, platform.processor() or platform.machine())
