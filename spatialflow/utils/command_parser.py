"""The argument parser of the commands: its help starts with examples."""

from __future__ import annotations

import argparse
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose help starts with examples; descriptions keep their line breaks.

    Args:
        examples: command lines, one a line (``%(prog)s`` stands for the command's name) and, if
            wanted, lines that begin with "#" and say what the next one does.
        **kwargs: arguments of ``argparse.ArgumentParser``.
    """

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self._examples = examples

    @property
    def examples(self) -> list[str]:
        """The lines of the examples, as the help shows them."""
        return self._examples.replace("%(prog)s", self.prog).strip().splitlines()

    def format_help(self) -> str:
        """The examples, and what argparse writes."""
        lines = [f"  {line}" for line in self.examples]
        return "\n".join(["examples:", *lines, "", super().format_help()])


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--import``, for :func:`spatialflow.utils.user_modules.import_modules`."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import your own module (a dotted name or a .py file) first, which registers "
        "backbones, heads or models; can be given several times",
    )
