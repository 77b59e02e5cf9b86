"""``spatialflow zoo``: the table of all configs."""

from __future__ import annotations

import argparse

from spatialflow.utils.command_parser import CommandParser

from .markdown import render


def parser() -> CommandParser:
    """No arguments."""
    return CommandParser(
        prog="spatialflow zoo",
        examples="%(prog)s > MODEL_ZOO.md",
        description="Print the table of all configs, with published and measured results, as "
        "Markdown.",
    )


def run(args: argparse.Namespace) -> None:
    """Print MODEL_ZOO.md."""
    print(render(), end="")
