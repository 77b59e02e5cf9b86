"""``spatialflow check``: can this dataset be trained on?"""

from __future__ import annotations

import argparse
import os
import sys
from io import TextIOWrapper

from detectron2.data import DatasetCatalog, MetadataCatalog

from spatialflow.config import load_config
from spatialflow.data.register import (
    PanopticFiles,
    find_panoptic_files,
    load_dataset_dicts,
    register_entries,
)
from spatialflow.errors import UsageError
from spatialflow.paths import refuse_overwriting
from spatialflow.utils.command_parser import CommandParser

from . import Problem, check_dataset


def run(args: argparse.Namespace) -> int:
    """Check and report.

    Returns:
        0 when the dataset can be trained on, 1 when it has errors.

    Raises:
        UsageError: it cannot be checked, or the report cannot be written.
    """
    # File names may hold what the terminal cannot show.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        files = _files(args)
        if args.json_out:
            read = [files.panoptic_json, args.config_file]
            refuse_overwriting([args.json_out], filter(None, read), "--json-out")
    except (OSError, ValueError) as e:
        raise UsageError(str(e)) from e
    report = check_dataset(files, args.workers, progress=True)
    report.problems += _separated_problems(args.name)
    print(report.as_text(args.verbose))
    if args.json_out:
        try:
            report.write_json(args.json_out)
        except OSError as e:
            raise UsageError(f"--json-out: {e}") from e
    return 0 if report.trainable else 1


EXAMPLES = """
%(prog)s coco_2017_val_panoptic
%(prog)s streets_train --config-file streets.yaml
%(prog)s --json mine.json --images /data/mine --panoptic /data/mine_png
"""


def parser() -> CommandParser:
    """A dataset and what to write."""
    parser = CommandParser(
        prog="spatialflow check",
        examples=EXAMPLES,
        description="Check a dataset in COCO panoptic format. Exit status: 0 when it can be "
        "trained on (there may be warnings), 1 when it has errors, 2 for wrong usage.",
    )
    parser.add_argument("name", nargs="?", help="registered name, or --json, --images, --panoptic")
    parser.add_argument("--config-file", help="config whose DATASETS.REGISTER has the name")
    parser.add_argument("--json", help="the panoptic JSON")
    parser.add_argument("--images", help="folder of the images")
    parser.add_argument("--panoptic", help="folder of the panoptic PNGs")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--verbose", action="store_true", help="show all problems and classes")
    parser.add_argument("--json-out", metavar="FILE", help="write everything to a JSON file")
    return parser


def _files(args: argparse.Namespace) -> PanopticFiles:
    paths = (args.images, args.panoptic, args.json)
    if args.name is None and all(paths):
        return PanopticFiles(*paths)
    if args.name is None or any(paths):
        raise ValueError("give a dataset's name, or all of --json, --images and --panoptic.")
    entries = register_entries(load_config(args.config_file)) if args.config_file else ()
    return find_panoptic_files(args.name, entries)


def _separated_problems(name: str | None) -> list[Problem]:
    """Whether the other annotations that Detectron2's ``*_separated`` names need can be loaded."""
    if (
        name is None
        or name not in DatasetCatalog
        or not MetadataCatalog.get(name).get("sem_seg_root")
    ):
        return []
    try:
        load_dataset_dicts(name)
    except Exception as e:  # Detectron2 asserts what it needs, with errors of many kinds
        return [Problem("not_loadable", name, f"{type(e).__name__}: {e}"[:500])]
    return []
