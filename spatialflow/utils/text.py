"""Lists and tables in messages and on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate


def name_some(names: Iterable[object], limit: int = 5) -> str:
    """The first names of a list, and how many there are beside them."""
    texts = list(map(str, names))
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def table(rows: Iterable[Sequence[object]], headers: Sequence[str], left: int = 0) -> str:
    """A table to read on a terminal, which is Markdown too.

    Args:
        rows: cells, shown as they are.
        headers: headers of the columns.
        left: number of the first columns that are left-aligned; the others are right-aligned.
    """
    align = ["left"] * left + ["right"] * (len(headers) - left)
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=align)
