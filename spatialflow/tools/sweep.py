"""``spatialflow sweep``: PQ at other thresholds of the merge.

The raw outputs of an evaluation (TEST.SAVE_RAW_OUTPUTS) are merged again by the model's own merge,
once for each combination of thresholds; the model does not run.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from spatialflow.data.categories import Categories
from spatialflow.data.file_names import file_below
from spatialflow.data.targets import read_panoptic_png
from spatialflow.evaluation.panoptic_quality import GROUPS, PanopticCounts, match_segments
from spatialflow.modeling.panoptic import Merge
from spatialflow.paths import refuse_overwriting
from spatialflow.saved.predictions import read_truth_json
from spatialflow.saved.raw_outputs import INDEX, RawOutputs, load_raw_output
from spatialflow.utils.command_parser import CommandParser, add_import_argument
from spatialflow.utils.parallel import in_parallel
from spatialflow.utils.text import table

SWEPT = {
    "score_thresh": "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
    "overlap_thresh": "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
    "stuff_area_limit": "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
    "box_fill_min_free": "MODEL.SPATIALFLOW.BOX_FILL.MIN_FREE",
}
"""The settings that can be swept, and the config keys they come from."""

Task = tuple[str, dict]
"""Path of an image's raw output, and its entry in ``annotations`` of the ground truth."""


def combinations(base: Merge, values: Mapping[str, Sequence]) -> list[Merge]:
    """``base`` first, then every combination of the values that is not the same as it.

    Args:
        base: the merge whose settings are changed.
        values: the values to try, by a name in ``SWEPT``.

    Raises:
        ValueError: the merge has no such setting.
    """
    for name in values:
        if name not in vars(base):
            raise ValueError(
                f"--{name.replace('_', '-')} is not a setting of the merge that the evaluation "
                f"had, {type(base).__name__}: {', '.join(vars(base))}."
            )
    merges = [base]
    for combination in itertools.product(*values.values()):
        changed = dataclasses.replace(base, **dict(zip(values, combination, strict=True)))
        if changed not in merges:
            merges.append(changed)
    return merges


def sweep(
    raw: RawOutputs, merges: Sequence[Merge], workers: int = 1, progress: bool = False
) -> list[PanopticCounts]:
    """Merge and count all images once for each of the merges.

    Args:
        raw: outputs of an evaluation on annotated images.
        merges: the first is that of the evaluation.
        workers: processes; 1 is this one.
        progress: show a progress bar.

    Returns:
        The counts of each merge. Those of the evaluation's merge are its own.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or outputs and ground truth
            are not of the same images.
    """
    counts = [PanopticCounts(raw.categories) for _ in merges]
    count_one = partial(
        _count_image,
        # The workers need not carry the list of files along.
        raw=dataclasses.replace(raw, files={}),
        merges=merges,
    )
    for tables in tqdm(
        in_parallel(count_one, tasks_of(raw), workers),
        total=len(raw.files),
        unit="image",
        disable=not progress,
    ):
        for count, part in zip(counts, tables, strict=True):
            count.table += part
    return counts


def tasks_of(raw: RawOutputs) -> list[Task]:
    """Every image with its ground truth, in the order of the evaluation; see :func:`sweep`."""
    if not raw.truth:
        raise ValueError(f"The raw outputs in {raw.folder} are of images without ground truth.")
    path = raw.truth["panoptic_json"]
    content, _ = read_truth_json(path, Categories.from_json(raw.categories))
    annotations = {a["image_id"]: a for a in content["annotations"]}
    lost = [i for i in raw.files if i not in annotations]
    if lost:
        raise ValueError(f"{path} does not annotate image {lost[0]!r}, of which there is output.")
    return [(os.path.join(raw.folder, name), annotations[i]) for i, name in raw.files.items()]


def _count_image(task: Task, raw: RawOutputs, merges: Sequence[Merge]) -> list[np.ndarray]:
    path, annotation = task
    png = file_below(raw.truth["panoptic_root"], annotation["file_name"])
    truth = read_panoptic_png(png)
    instances, labels = load_raw_output(path)
    tables = []
    for merge in merges:
        counts = PanopticCounts(raw.categories)
        try:
            id_map, segments = raw.merged(instances, labels, merge)
            counts.add(match_segments(id_map, segments, truth, annotation["segments_info"]))
        except ValueError as e:
            raise ValueError(f"{path} against {png}: {e}.") from e
        tables.append(counts.table)
    return tables


def rows_of(merges: Sequence[Merge], counts: Sequence[PanopticCounts]) -> list[dict]:
    """A dict for each merge: its settings, PQ, PQ_th and PQ_st in percent; best first.

    ``is_config`` marks the first of the merges, that of the evaluation.
    """
    rows = []
    for i, (merge, count) in enumerate(zip(merges, counts, strict=True)):
        results = count.results()
        row = {name: value for name, value in vars(merge).items() if name in SWEPT}
        for name, group in zip(("PQ", "PQ_th", "PQ_st"), GROUPS, strict=True):
            row[name] = 100 * results[group]["pq"]
        rows.append(row | {"is_config": i == 0})
    return sorted(rows, key=lambda row: -row["PQ"])


def run(args: argparse.Namespace) -> None:
    """Merge, count, print, and write what the arguments ask for."""
    torch.set_num_threads(1)  # the processes are the parallelism
    raw = RawOutputs.open(args.folder)
    outputs, index = (args.json_out, args.csv_out), os.path.join(args.folder, INDEX)
    refuse_overwriting(filter(None, outputs), [index, *raw.truth.values()], "output file")
    values = {name: v for name in SWEPT if (v := getattr(args, name)) is not None}
    merges = combinations(raw.merge, values)
    rows = rows_of(merges, sweep(raw, merges, args.workers, progress=True))
    print(_table(rows))
    if args.json_out:
        with open(args.json_out, "w") as f:
            json.dump(rows, f, indent=2)
    if args.csv_out:
        with open(args.csv_out, "w", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


EXAMPLES = """
%(prog)s output/inference/coco_2017_val_panoptic --score-thresh 0.3 0.4 0.5
%(prog)s output/inference/toy_panoptic_val --box-fill-min-free 0.5 0.6 off --csv-out sweep.csv
"""


def parser() -> CommandParser:
    """The raw outputs, and the values of each setting."""
    parser = CommandParser(
        prog="spatialflow sweep",
        examples=EXAMPLES,
        description="PQ at other thresholds of the merge, from the raw outputs that an evaluation "
        "with TEST.SAVE_RAW_OUTPUTS True wrote. What is not given stays as it was there.",
    )
    add_import_argument(parser)
    parser.add_argument("folder", help="OUTPUT_DIR/inference/DATASET of that evaluation")
    kinds: dict[str, Callable[[str], Any]] = {"stuff_area_limit": int, "box_fill_min_free": _fill}
    for name, key in SWEPT.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kinds.get(name, float),
            nargs="+",
            metavar="VALUE",
            help=f"values of {key}" + "; 'off' for no fill" * (name == "box_fill_min_free"),
        )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json-out", metavar="FILE", help="write the table as JSON")
    parser.add_argument("--csv-out", metavar="FILE", help="write the table as CSV")
    return parser


def _fill(text: str) -> float | None:
    return None if text == "off" else float(text)


def _table(rows: Sequence[Mapping]) -> str:
    swept = [name for name in SWEPT if name in rows[0]]
    shown = [
        [f"{row[key]:.2f}" for key in ("PQ", "PQ_th", "PQ_st")]
        + ["off" if row[name] is None else str(row[name]) for name in swept]
        + ["as evaluated" if row["is_config"] else ""]
        for row in rows
    ]
    return table(shown, ["PQ", "PQ things", "PQ stuff", *swept, ""])
