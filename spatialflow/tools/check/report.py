"""What the checker found, as a screen of text and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tabulate import tabulate

from .anchors import AnchorFit
from .problems import DESCRIPTIONS, Problem, Severity

_EXAMPLES = 3
_CLASSES = 20
_LINE = 240


@dataclass
class ClassCount:
    """How often a class occurs: images that have it, segments, pixels."""

    id: int
    name: str
    isthing: bool
    images: int = 0
    segments: int = 0
    pixels: int = 0


@dataclass
class Report:
    """All problems of a dataset and its statistics.

    ``images`` and ``annotations`` are entries of the JSON; ``void`` and ``total`` are pixels of
    the PNGs that could be read. ``anchors`` is None without things.
    """

    panoptic_json: str
    images: int = 0
    annotations: int = 0
    void: int = 0
    total: int = 0
    classes: list[ClassCount] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    anchors: AnchorFit | None = None

    def count(self, severity: Severity) -> int:
        """Number of problems of a severity."""
        return sum(p.severity is severity for p in self.problems)

    @property
    def trainable(self) -> bool:
        """Whether the dataset can be trained on: there is no error."""
        return not self.count(Severity.ERROR)

    @property
    def void_share(self) -> float:
        """Share of the pixels that are void, 0 to 1."""
        return self.void / self.total if self.total else 0.0

    def write_json(self, path: str) -> None:
        """Write everything to a file; OSError where that is impossible."""
        content = {
            "panoptic_json": self.panoptic_json,
            "trainable": self.trainable,
            "errors": self.count(Severity.ERROR),
            "warnings": self.count(Severity.WARNING),
            "images": self.images,
            "annotations": self.annotations,
            "void_share": self.void_share,
            "classes": [asdict(c) for c in self.classes],
            "anchors": asdict(self.anchors) if self.anchors else None,
            "problems": [{**asdict(p), "severity": p.severity.value} for p in self.problems],
        }
        Path(path).write_text(json.dumps(content, indent=1) + "\n")

    def as_text(self, verbose: bool = False) -> str:
        """A screen of text; ``verbose`` shows all problems and classes."""
        parts = [
            f"{self.panoptic_json}: {self.images} images, {self.annotations} annotations, "
            f"{self.void_share:.1%} of the pixels void",
            _class_table(self.classes, None if verbose else _CLASSES),
            str(self.anchors or ""),
            *_problem_lists(self.problems, None if verbose else _EXAMPLES),
            self._verdict(),
        ]
        return "\n\n".join(p for p in parts if p)

    def _verdict(self) -> str:
        counts = ((self.count(s), s.value) for s in Severity)
        found = ", ".join(f"{n} {name}{'s' * (n != 1)}" for n, name in counts)
        can = "can be trained on" if self.trainable else "cannot be trained on as it is"
        return f"The dataset {can}: {found}."


def _problem_lists(problems: Sequence[Problem], limit: int | None) -> list[str]:
    counts = Counter(p.kind for p in problems)
    blocks = []
    for kind in DESCRIPTIONS:
        if kind in counts:
            these = [p for p in problems if p.kind == kind]
            lines = [
                f"{these[0].severity.value.upper()} {kind} ({len(these)}): {DESCRIPTIONS[kind]}"
            ]
            lines += [f"  {p}" if limit is None else f"  {p}"[:_LINE] for p in these[:limit]]
            if limit is not None and len(these) > limit:
                lines.append(f"  ... and {len(these) - limit} more (--verbose shows all)")
            blocks.append("\n".join(lines))
    return blocks


def _class_table(classes: Sequence[ClassCount], limit: int | None) -> str:
    pixels = sum(c.pixels for c in classes) or 1
    rows = [
        (
            c.id,
            c.name[:30],
            "thing" if c.isthing else "stuff",
            c.images,
            c.segments,
            f"{100 * c.pixels / pixels:.2f}",
        )
        for c in sorted(classes, key=lambda c: -c.pixels)
        if c.segments
    ]
    if not rows:
        return ""
    header = ("id", "class", "kind", "images", "segments", "% of pixels")
    table = tabulate(rows[:limit], header, disable_numparse=True, colalign=_ALIGN)
    left_out = len(rows) - len(rows[:limit])
    return f"{table}\n... and {left_out} classes with fewer pixels" if left_out else table


_ALIGN = ("right", "left", "left", "right", "right", "right")
