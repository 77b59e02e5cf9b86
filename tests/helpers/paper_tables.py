"""Read the numbers of the papers' tables from their texts.

    python tests/helpers/paper_tables.py FOLDER > tests/recordings/paper_tables.json

FOLDER has the texts as they were taken from the PDFs, tables as lines with tabs or bars.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

JOURNAL = "spatialflow_journal.txt"
REPORT = "spatialflow_challenge_report.txt"
JSIS_NET = "jsis_net.txt"
PANOPTIC_FPN = "panoptic_fpn.txt"
SPINET = "spinet.txt"


def main() -> None:
    """Print the JSON."""
    folder = Path(sys.argv[1])
    files = (JOURNAL, REPORT, JSIS_NET, PANOPTIC_FPN, SPINET)
    texts = {name: (folder / name).read_text() for name in files}
    roman = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"]
    tables = {f"Table {n}": read_journal_table(texts[JOURNAL], f"Table {n}") for n in roman}
    for n in (1, 2, 3):
        tables[f"Report Table {n}"] = read_report_table(texts[REPORT], f"Table {n}")
    for n in (1, 3):
        tables[f"JSIS-Net Table {n}"] = read_jsis_net_table(texts[JSIS_NET], f"Table {n}")
    content = {
        "sha256": {k: hashlib.sha256(v.encode()).hexdigest() for k, v in texts.items()},
        "tables": tables,
        "panoptic_fpn": read_panoptic_fpn(texts[PANOPTIC_FPN]),
        "spinet": read_spinet(texts[SPINET]),
    }
    print(json.dumps(content, separators=(",", ":")))


def read_panoptic_fpn(text: str) -> list[tuple[str, str, tuple[float, ...]]]:
    """Dataset, backbone, and PQ, PQ of things and PQ of stuff."""
    rows = []
    for line in re.findall(r"^(?:COCO|Cityscapes)\tR\d+-FPN\t.*", text, re.M):
        dataset, backbone, _, things, _, stuff, pq = line.split("\t")
        rows.append((dataset, backbone, tuple(map(float, (pq, things, stuff)))))
    return rows


def read_spinet(text: str) -> list[tuple[float, ...]]:
    """The decimal numbers of each line with tabs."""
    text = re.sub(r"</?b>|<u>|</u>|\*", "", text)
    return [numbers_in(line) for line in text.splitlines() if "\t" in line and numbers_in(line)]


def numbers_in(line: str) -> tuple[float, ...]:
    return tuple(map(float, re.findall(r"\d+\.\d+", line)))


def read_journal_table(text: str, table: str) -> list[tuple[float, ...]]:
    """The decimal numbers of each row: the first lines with tabs after the caption."""
    caption = re.search(rf"^{table.upper()}\s*$", text, re.M)
    block = re.search(r"(?:^.*\t.*\n)+", text[caption.end() :], re.M)[0]
    rows = [numbers_in(line) for line in block.splitlines()[1:]]
    if table == "Table IV":  # one column for each lambda
        rows = list(zip(*rows, strict=True))
    return rows


def read_report_table(text: str, table: str) -> list[tuple[float, ...]]:
    """The decimal numbers of each row: the lines with bars before the caption."""
    before = text[: text.index(f"\n{table}:")]
    block = re.findall(r"(?:^\|.*\n)+", before, re.M)[-1]
    return [numbers_in(line) for line in block.splitlines()[2:]]


def read_jsis_net_table(text: str, table: str) -> list[tuple[float, ...]]:
    """The decimal numbers of each row: the lines with tabs before the caption.

    PQ, SQ and RQ stand beside each other for all, things and stuff; here without SQ and RQ.
    """
    block = re.findall(r"(?:^.*\t.*\n)+", text[: text.index(f"\n{table}:")], re.M)[-1]
    rows = [numbers_in(line.split("\t", 1)[1]) for line in block.splitlines()[1:]]
    return [row[::3] if len(row) == 9 else row for row in rows]


if __name__ == "__main__":
    main()
