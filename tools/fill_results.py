#!/usr/bin/env python
"""Write the measured numbers into README.md, MODEL_ZOO.md and docs/; `make results` calls this.

They come from spatialflow/tools/zoo/measured.json. To change a number, change it there and run

    python tools/fill_results.py

or change it in a table of docs/ and run it with --from-markdown.

To add a table, write it as Markdown into a file of docs/ and run the same command: a table without
markers gets some, named after its heading, and one whose name measured.json does not have is put
into it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from spatialflow.tools.zoo import measured
from spatialflow.tools.zoo.markdown import render

ROOT = Path(__file__).resolve().parent.parent
ADOPTED = ("docs/RESULTS.md", "docs/TOY_ABLATION.md", "docs/SUPPORT.md")
"""Files whose tables are all measured results."""
FILLED = (*ADOPTED, "README.md", "docs/GUIDE.md", "docs/PERFORMANCE.md", "docs/SCALE.md")

_TABLE = re.compile(r"(?:^\|.*\n)+", re.M)
_HEADING = re.compile(r"^#+ (.*)$", re.M)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--from-markdown", action="store_true", help="where tables differ, those of docs/ count"
    )
    fill_files(parser.parse_args().from_markdown)


def fill_files(from_markdown: bool = False) -> None:
    """Write all files; ``from_markdown``: after putting the tables of docs/ into measured.json."""
    texts = {name: (ROOT / name).read_text() for name in FILLED}
    for name in ADOPTED:
        texts[name] = with_markers(texts[name])
    for text in texts.values():
        adopt(text, from_markdown)
    for name, text in texts.items():
        (ROOT / name).write_text(measured.fill(text))
    (ROOT / "MODEL_ZOO.md").write_text(render())


def with_markers(text: str) -> str:
    """Markers around the tables that have none; their names come from the heading above."""
    taken = {match[1] for match in measured.BLOCK.finditer(text)} | set(measured.tables())
    parts, end = [], 0
    for table in _TABLE.finditer(text):
        before = text[end : table.start()]
        if before.rstrip().rpartition("\n")[2].startswith("<!-- results: "):
            parts += [before, table[0]]
        else:
            headings = _HEADING.findall(text[: table.start()])
            name = unused(slug(headings[-1] if headings else "table"), taken)
            taken.add(name)
            parts += [before, f"<!-- results: {name} -->\n{table[0]}<!-- end -->\n"]
        end = table.end()
    return "".join([*parts, text[end:]])


def adopt(text: str, known_too: bool = False) -> None:
    """Put the marked tables that measured.json does not have into it, or all marked tables."""
    known = set(measured.COMPUTED) if known_too else set(measured.tables())
    found = {m[1]: m[2] for m in measured.BLOCK.finditer(text) if m[1] not in known}
    if found:
        measured.save({name: measured.parse_markdown(table) for name, table in found.items()})


def slug(heading: str) -> str:
    """A heading's words in lower case, joined by "_"."""
    return "_".join(re.findall(r"[a-z0-9]+", heading.lower()))


def unused(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


if __name__ == "__main__":
    main()
