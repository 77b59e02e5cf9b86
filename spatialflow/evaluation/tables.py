"""Results as tables for a terminal, as JSON and as CSV.

*Results* are ``{task: {metric: value}}``, as evaluators return them in the main process; a value
that could not be measured is NaN.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping

from spatialflow.utils.text import table

Results = Mapping[str, Mapping[str, float]]

_PQ_ROWS = {"All": "", "Things": "_th", "Stuff": "_st"}
_OTHER_COLUMNS = {
    "box AP": ("bbox", "AP"),
    "box AP50": ("bbox", "AP50"),
    "box AP75": ("bbox", "AP75"),
    "mask AP": ("segm", "AP"),
    "mask AP50": ("segm", "AP50"),
    "mask AP75": ("segm", "AP75"),
    "mIoU": ("sem_seg", "mIoU"),
    "fwIoU": ("sem_seg", "fwIoU"),
    "class IoU": ("sem_seg", "IoU"),
    "class iIoU": ("sem_seg", "iIoU"),
    "category IoU": ("sem_seg", "IoU_sup"),
    "category iIoU": ("sem_seg", "iIoU_sup"),
}
_COMPARED = {
    "PQ": ("panoptic_seg", "PQ"),
    "PQ things": ("panoptic_seg", "PQ_th"),
    "PQ stuff": ("panoptic_seg", "PQ_st"),
    "SQ": ("panoptic_seg", "SQ"),
    "RQ": ("panoptic_seg", "RQ"),
    **{name: place for name, place in _OTHER_COLUMNS.items() if place[1] not in ("AP50", "AP75")},
}


def format_results(
    results: Results, intervals: Mapping[str, tuple[float, float]] | None = None
) -> str:
    """Tables of one dataset's results: PQ, SQ, RQ, then AP and IoU, as far as they are there.

    Args:
        results: results of one dataset.
        intervals: lower and upper end by metric of "panoptic_seg", shown behind the value.

    Returns:
        Text for a terminal; "-" stands for what could not be measured.
    """
    tables = []
    if "panoptic_seg" in results:
        metrics, ends = results["panoptic_seg"], intervals or {}
        rows = [
            [
                group,
                *(_shown(metrics[k + suffix], ends.get(k + suffix)) for k in ("PQ", "SQ", "RQ")),
            ]
            for group, suffix in _PQ_ROWS.items()
        ]
        tables.append(table(rows, ["", "PQ", "SQ", "RQ"]))
    others = _cells(results, _OTHER_COLUMNS)
    if others:
        tables.append(table([list(others.values())], list(others)))
    return "\n\n".join(tables) or "Nothing was evaluated."


def format_comparison(by_name: Mapping[str, Results]) -> str:
    """One table of several datasets, a row each; "-" stands for what was not measured."""
    rows = {name: _cells(results, _COMPARED) for name, results in by_name.items()}
    columns = [c for c in _COMPARED if any(c in row for row in rows.values())]
    return table(
        [[name, *(row.get(c, "-") for c in columns)] for name, row in rows.items()],
        ["dataset", *columns],
    )


def write_csv(
    path: str,
    by_name: Mapping[str, Results],
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Write results as a CSV with a row for each number: dataset, task, metric, value.

    One row a number, because datasets differ in classes and tasks; a spreadsheet's pivot or
    ``pandas.read_csv(path).pivot(index="metric", columns="dataset", values="value")`` makes it
    wide. What could not be measured is an empty field.

    Args:
        path: path of the file.
        by_name: results by dataset.
        intervals: as for :func:`format_results`; they become the columns ``low`` and ``high``.
    """
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(
            ["dataset", "task", "metric", "value", *(["low", "high"] * bool(intervals))]
        )
        for name, results in by_name.items():
            for task, metrics in results.items():
                for metric, value in metrics.items():
                    row = [value]
                    if intervals:
                        found = task == "panoptic_seg" and metric in intervals
                        row += intervals[metric] if found else [math.nan] * 2
                    writer.writerow(
                        [name, task, metric, *("" if math.isnan(v) else v for v in row)]
                    )


def _cells(results: Results, columns: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    return {
        column: _shown(results[task][metric])
        for column, (task, metric) in columns.items()
        if metric in results.get(task, {})
    }


def _shown(value: float, interval: tuple[float, float] | None = None) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
