"""``spatialflow report RESULTS``: one page to look at an evaluation."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from spatialflow.paths import refuse_overwriting
from spatialflow.utils.command_parser import CommandParser

from .content import build_content
from .page import write_page
from .saved import read_saved

MAX_PICTURES = 25
"""Best and worst images each, so that the page stays below some 15 MB."""


def run(args: argparse.Namespace) -> None:
    """Write the page."""
    output = args.output or Path(args.results) / "report.html"
    saved = read_saved(args.results, args.dataset)
    refuse_overwriting([output], saved.files)
    write_page(build_content(saved, args.images, args.workers), output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB; open it in a browser.")


def parser() -> CommandParser:
    """An evaluation and a file."""
    parser = CommandParser(
        prog="spatialflow report",
        examples="%(prog)s output/toy\n%(prog)s output --dataset mine_val --output mine.html",
        description="Write one self-contained HTML page about an evaluation: PQ per class, "
        "confusions, best and worst images. The evaluation needs TEST.SAVE_PREDICTIONS True, "
        "`spatialflow predict` --json.",
    )
    parser.add_argument(
        "results", metavar="RESULTS", help="OUTPUT_DIR of the evaluation, or --output of predict"
    )
    parser.add_argument("--output", type=Path, help="default: RESULTS/report.html")
    parser.add_argument("--dataset", help="needed where several were evaluated")
    parser.add_argument(
        "--images",
        type=_number_of_pictures,
        default=10,
        metavar="N",
        help=f"how many of the best and of the worst images, 0 to {MAX_PICTURES} "
        "(default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    return parser


def _number_of_pictures(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PICTURES:
        raise argparse.ArgumentTypeError(f"a whole number from 0 to {MAX_PICTURES}, not {text}")
    return int(text)
