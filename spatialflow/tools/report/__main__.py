"""``python -m spatialflow.tools.report RESULTS``: one page to look at an evaluation."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from spatialflow.errors import exit_on_user_error, reading_user_input
from spatialflow.paths import refuse_overwriting

from .content import build_content
from .page import write_page
from .saved import read_saved

MAX_PICTURES = 25
"""Best and worst images each, so that the page stays below some 15 MB."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = _parser().parse_args(argv)
    output = args.output or Path(args.results) / "report.html"
    with reading_user_input():
        saved = read_saved(args.results, args.dataset)
        refuse_overwriting([output], saved.files)
        content = build_content(saved, args.images, args.workers)
        write_page(content, output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB; open it in a browser.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spatialflow.tools.report",
        description="Write one self-contained HTML page about an evaluation: PQ per class, "
        "confusions, best and worst images. The evaluation needs TEST.SAVE_PREDICTIONS True.",
    )
    parser.add_argument("results", metavar="RESULTS", help="OUTPUT_DIR of the evaluation")
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


if __name__ == "__main__":
    with exit_on_user_error():
        main()
