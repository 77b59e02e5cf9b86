"""The measured results, which have one home: ``measured.json`` beside this module.

It has tables of text cells by name, and by config the numbers of MODEL_ZOO.md. README.md and docs/
show tables and single numbers of it between markers, which :func:`fill` writes:

    <!-- results: NAME -->                     a table, to the next <!-- end -->
    <!-- =NAME::ROW::COLUMN -->84.0<!-- /= -->  one cell; "::.1f" behind it rounds

ROW is a row's first cell. The tables of ``COMPUTED`` are made from these numbers, the cards of the
weights that come with the project, and the published numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TypedDict

from spatialflow.model_zoo.shipped import read_card, shipped_configs, shipped_weights
from spatialflow.utils.files import atomic_write

from .result import CITYSCAPES_VAL, COCO_VAL, Metrics
from .results import PANOPTIC_RESULTS

FILE = Path(__file__).with_name("measured.json")
BLOCK = re.compile(r"<!-- results: (\S+) -->\n(.*?)<!-- end -->", re.S)
CELL = re.compile(r"<!-- =([^>]+?) -->(.*?)<!-- /= -->", re.S)


class Table(TypedDict):
    """Headings, their alignments as Markdown has them (``---:``), and rows of text cells."""

    columns: list[str]
    align: list[str]
    rows: list[list[str]]


Tables = dict[str, Table]


@cache
def _content() -> Mapping:
    return json.loads(FILE.read_text(encoding="utf-8"))


def tables() -> Tables:
    """All tables by name."""
    return {**_content()["tables"], **{name: make() for name, make in COMPUTED.items()}}


def of_config(config: str) -> Metrics | None:
    """The measured numbers of a config, see :class:`Result`; None: not measured yet.

    Where weights come with the project, they are those of the weights' card.
    """
    if config in shipped_configs():
        card = read_card(shipped_weights(config))
        return card.results["PQ"], card.results["PQ_th"], card.results["PQ_st"]
    numbers = _content()["configs"].get(config)
    if numbers is None:
        return None
    return tuple(float(lookup(n)) if isinstance(n, str) else n for n in numbers)


def lookup(reference: str) -> str:
    """The text of a cell, by ``NAME::ROW::COLUMN`` and perhaps ``::FORMAT``.

    Raises:
        KeyError: there is no such table, row or column.
    """
    name, row, column, *format_spec = reference.split("::")
    try:
        table = COMPUTED[name]() if name in COMPUTED else _content()["tables"][name]
        cells = next(r for r in table["rows"] if r[0] == row)
        cell = cells[table["columns"].index(column)]
    except (KeyError, StopIteration, ValueError) as e:
        raise KeyError(f"{FILE.name} has no cell {reference!r}") from e
    return format(float(cell), format_spec[0]) if format_spec else cell


def markdown(table: Table) -> str:
    """A table as Markdown, one line a row."""
    lines = [table["columns"], table["align"], *table["rows"]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def parse_markdown(text: str) -> Table:
    """The table of Markdown lines; the inverse of :func:`markdown` but for spaces."""
    columns, align, *rows = (
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.strip().splitlines()
    )
    align = [re.sub("-+", "---", cell) for cell in align]
    return {"columns": columns, "align": align, "rows": rows}


def fill(text: str) -> str:
    """A text with its marked tables and cells as they are in ``measured.json``."""
    known = tables()

    def block(match: re.Match) -> str:
        return f"<!-- results: {match[1]} -->\n{markdown(known[match[1]])}<!-- end -->"

    text = BLOCK.sub(block, text)
    return CELL.sub(lambda m: f"<!-- ={m[1]} -->{lookup(m[1])}<!-- /= -->", text)


def save(new: Mapping[str, Table]) -> None:
    """Put tables into ``measured.json``, in the place of those of the same names."""
    content = dict(_content())
    content["tables"] = {**content["tables"], **new}
    with atomic_write(str(FILE), "w") as f:
        f.write(_dumps(content))
    _content.cache_clear()


def _dumps(content: Mapping) -> str:
    """JSON with each table row on a line of its own, so that a diff shows which number changed."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", _one_line, text) + "\n"


def _one_line(match: re.Match) -> str:
    return f"[{re.sub(chr(10) + ' +', ' ', match[1])}]"


def _shipped() -> Table:
    rows = []
    for config in shipped_configs():
        results = read_card(shipped_weights(config)).results
        rows.append([config, *(str(results[key]) for key in ("PQ", "PQ_th", "PQ_st"))])
    return {"columns": ["config", "PQ", "PQ Th", "PQ St"], "align": ["---"] * 4, "rows": rows}


def _headline() -> Table:
    """Measured next to published, of the configs that README.md shows."""
    listed = {(r.config, r.split): r for group in PANOPTIC_RESULTS.values() for r in group}
    columns = ["config", "data", "measured PQ / things / stuff", "published"]
    rows = []
    for config, split in HEADLINE:
        result, measured = listed[config, split], of_config(config)
        cells = (numbers(measured) if measured else "not measured", numbers(result.published))
        rows.append([config.removesuffix(".yaml"), split, *cells])
    return {"columns": columns, "align": ["---", "---", "---:", "---:"], "rows": rows}


def numbers(metrics: Metrics | None) -> str:
    """Metrics as the tables have them; "-" for None."""
    return "-" if metrics is None else " / ".join(f"{value:.1f}" for value in metrics)


HEADLINE = (
    ("toy/spatialflow_toy_lite0.yaml", "toy val"),
    ("camvid/spatialflow_lite0.yaml", "CamVid val"),
    ("COCO/spatialflow_R_50_20e.yaml", COCO_VAL),
    ("released/spatialflow_R_50_20e.yaml", COCO_VAL),
    ("Cityscapes/spatialflow_R_50.yaml", CITYSCAPES_VAL),
)
COMPUTED = {"shipped": _shipped, "measured_next_to_published": _headline}
