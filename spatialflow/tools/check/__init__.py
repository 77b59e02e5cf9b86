"""Check a dataset in COCO panoptic format before training on it.

Every problem is collected, whatever the files hold; ``spatialflow check`` is the command. Entries
of the JSON are checked in :mod:`.entries`, files in :mod:`.files`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from tqdm import tqdm

from spatialflow.data.categories import Category
from spatialflow.data.coco_panoptic import read_panoptic_lists
from spatialflow.data.register import PanopticFiles
from spatialflow.data.shards import is_sharded
from spatialflow.utils.parallel import in_parallel

from .anchors import fit_anchors
from .entries import Pair, check_categories, check_entries
from .files import Outcome, check_pair
from .problems import Problem, Severity, shown
from .report import ClassCount, Report

__all__ = ["Problem", "Report", "Severity", "check_dataset"]


def check_dataset(files: PanopticFiles, workers: int = 1, progress: bool = False) -> Report:
    """Check a dataset; nothing in its files makes this raise.

    Args:
        files: image folder, PNG folder, JSON and what else a registration says
            (:func:`spatialflow.data.register.find_panoptic_files`).
        workers: processes that decode images; 1 is this one.
        progress: show a progress bar.
    """
    report = Report(files.panoptic_json)
    try:
        content = read_panoptic_lists(files.panoptic_json)
    except (OSError, ValueError) as e:
        report.problems = [Problem("json_unreadable", files.panoptic_json, str(e)[:500])]
        return report
    report.images, report.annotations = len(content["images"]), len(content["annotations"])
    categories, report.problems = check_categories(content["categories"], files.categories)
    pairs, problems = check_entries(content, categories, files)
    report.problems += problems
    outcomes = tqdm(
        _outcomes(pairs, files, workers), total=len(pairs), unit="image", disable=not progress
    )
    _add_outcomes(report, outcomes, categories)
    report.problems += _unlisted(files.image_root, (p.image for p in pairs))
    report.problems += _unlisted(files.panoptic_root, (p.png for p in pairs))
    return report


def _outcomes(pairs: list[Pair], files: PanopticFiles, workers: int) -> Iterator[Outcome]:
    check = partial(check_pair, image_root=files.image_root, panoptic_root=files.panoptic_root)
    try:
        yield from in_parallel(check, pairs, workers)
    except BrokenProcessPool as e:  # killed for its memory, or a decoder crashed
        message = f"{e} The images after it were not checked; --workers 1 shows which it was."
        yield Outcome([Problem("check_failed", "a worker process", message)])


def _add_outcomes(
    report: Report, outcomes: Iterable[Outcome], categories: dict[int, Category]
) -> None:
    sides: list[tuple[float, float]] = []
    counts: dict[int | None, ClassCount] = {
        i: ClassCount(i, c.name, c.isthing) for i, c in sorted(categories.items())
    }
    for outcome in outcomes:
        report.problems += outcome.problems
        report.void += outcome.void
        report.total += outcome.total
        for id_ in outcome.segments.keys() & counts.keys():
            counts[id_].images += 1
            counts[id_].segments += outcome.segments[id_]
            counts[id_].pixels += outcome.pixels[id_]
            if counts[id_].isthing:
                sides += outcome.sides.get(id_, [])
    report.classes = list(counts.values())
    report.anchors = fit_anchors(sides)
    report.problems += [
        Problem("class_never_occurs", f"categories, id {c.id}", shown(c.name))
        for c in report.classes
        if not c.segments
    ]


def _unlisted(root: str, names: Iterable[str | None]) -> list[Problem]:
    """Files beside the dataset's own, of the same types, that are not the dataset's."""
    if is_sharded(root):
        return []  # a shard has what belongs to its samples, such as their captions
    listed = {os.path.normpath(os.path.join(root, name)) for name in names if name}
    suffixes = {os.path.splitext(path)[1] for path in listed}
    extra = []
    for folder in sorted({os.path.dirname(path) for path in listed}):
        if os.path.isdir(folder):
            paths = (os.path.join(folder, name) for name in sorted(os.listdir(folder)))
            extra += [p for p in paths if os.path.splitext(p)[1] in suffixes and p not in listed]
    if not extra:
        return []
    first = ", ".join(os.path.relpath(path, root) for path in extra[:3])
    return [Problem("unlisted_files", root, f"{len(extra)} files, such as {first}")]
