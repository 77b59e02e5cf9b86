"""``spatialflow score``: PQ of predictions that are on disk."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial

from spatialflow.data.categories import Categories
from spatialflow.errors import UsageError, UserError
from spatialflow.evaluation.bootstrap import bootstrap_intervals
from spatialflow.evaluation.scoring import Mapper, Score, score_folder
from spatialflow.evaluation.tables import format_results, write_csv
from spatialflow.paths import refuse_overwriting
from spatialflow.saved.dataset import DATASET_JSON, SavedDataset
from spatialflow.saved.predictions import PREDICTIONS_JSON, PanopticFolder
from spatialflow.utils.command_parser import CommandParser
from spatialflow.utils.files import without_nan
from spatialflow.utils.text import table

from .executors import Settings, add_executor_arguments, open_executor
from .executors.drive import in_order

EXAMPLES = """
# what an evaluation with TEST.SAVE_PREDICTIONS True wrote
%(prog)s output/inference/coco_2017_val_panoptic
# results of any model in COCO's panoptic format, pred/ beside pred.json, gt/ beside gt.json
%(prog)s pred.json --json gt.json --per-class
# the same, ground truth by its registered name, with 95 % intervals
%(prog)s pred.json --dataset coco_2017_val_panoptic --bootstrap 1000
# the results of `spatialflow predict --json val.json`, by the machines of a Dask cluster
%(prog)s predicted --executor dask --scheduler tcp://host:8786
"""
_EPILOG = """
An image without prediction counts as one where everything is missed; predictions of other images
are left out. Both are said in a warning."""


def run(args: argparse.Namespace) -> None:
    """Count, print and write what the arguments ask for."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if args.executor is not None:  # whose workers may be in other folders
        for key in ("predictions", "predictions_folder", "json", "panoptic"):
            setattr(args, key, getattr(args, key) and os.path.abspath(getattr(args, key)))
    name, truth, categories = ground_truth_of(args)
    predictions = predictions_of(args)
    refuse_overwriting_inputs(args, truth, [args.json_out, args.csv_out])
    try:
        with _mapper(args) as mapper:
            score = score_folder(
                predictions, truth, categories, args.workers, progress=True, mapper=mapper
            )
    except BrokenProcessPool as e:
        raise UserError(f"{e} Give fewer --workers, each of which needs memory.") from e
    intervals = {}
    if args.bootstrap:
        intervals = bootstrap_intervals(
            score.images, score.counts.categories, args.bootstrap, args.seed
        )
    _report(args, name, score, intervals)


def parser() -> CommandParser:
    """Which predictions, which ground truth, and what to write."""
    parser = CommandParser(
        prog="spatialflow score",
        examples=EXAMPLES,
        description="PQ, SQ and RQ of predictions on disk; no model is needed.",
        epilog=_EPILOG,
    )
    add_input_arguments(parser)
    add = parser.add_argument
    add_executor_arguments(parser, None)
    add("--per-class", action="store_true", help="show a table of all classes")
    add("--bootstrap", type=int, default=0, metavar="N", help="95 %% intervals from N replicates")
    add("--seed", type=int, default=0, help="of the bootstrap")
    add("--json-out", metavar="FILE", help="write everything to a JSON file")
    add("--csv-out", metavar="FILE", help="write a CSV with a row for each number")
    return parser


@contextmanager
def _mapper(args: argparse.Namespace) -> Iterator[Mapper | None]:
    """Who counts, where that is an executor."""
    if args.executor is None:
        if args.scheduler is not None:
            raise UsageError("--scheduler needs --executor dask or --executor ray.")
        yield None
        return
    executor = open_executor(args.executor, Settings(args.workers, args.scheduler))
    try:
        yield partial(in_order, executor)
    finally:
        executor.close()


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which predictions and which ground truth, and how many processes."""
    add = parser.add_argument
    add("predictions", help="JSON of COCO panoptic results, or the folder of a saved evaluation")
    add("--predictions-folder", default="", help="its PNGs; default: the JSON's name without .json")
    add("--json", help="ground truth: a panoptic JSON")
    add("--panoptic", default="", help="its PNGs; default: the JSON's name without .json")
    add("--dataset", help="ground truth: a registered name or a dataset.json")
    add("--config-file", help="config whose DATASETS.REGISTER has the name")
    add("--workers", type=int, default=os.cpu_count(), help="processes")


def predictions_of(args: argparse.Namespace) -> PanopticFolder:
    """The predictions that :func:`add_input_arguments` asks for."""
    path = args.predictions
    if os.path.isdir(path):
        path = os.path.join(path, PREDICTIONS_JSON)
    return PanopticFolder(path, args.predictions_folder)


def refuse_overwriting_inputs(
    args: argparse.Namespace,
    truth: PanopticFolder,
    outputs: Sequence[str | None],
    others: Sequence[str] = (),
) -> None:
    """Refuse outputs that would be written over what the command reads.

    Args:
        args: parsed arguments of :func:`add_input_arguments`.
        truth: the ground truth that they name.
        outputs: files to write; None for one that is not wanted.
        others: further files that are read.

    Raises:
        ValueError: see :func:`spatialflow.paths.refuse_overwriting`.
    """
    dataset = os.path.join(args.predictions, DATASET_JSON)
    inputs = [predictions_of(args).json, truth.json, dataset, args.dataset, args.config_file]
    inputs += others
    refuse_overwriting(filter(None, outputs), filter(None, inputs), "output file")


def ground_truth_of(args: argparse.Namespace) -> tuple[str, PanopticFolder, Categories | None]:
    """Name and files of the ground truth, and its categories unless they are the JSON's."""
    dataset = args.dataset
    if args.json:
        if dataset:
            raise UsageError("Give --json or --dataset, not both.")
        name = os.path.splitext(os.path.basename(args.json))[0]
        return name, PanopticFolder(args.json, args.panoptic), None
    if dataset is None:
        dataset = os.path.join(args.predictions, DATASET_JSON)
        if not os.path.isfile(dataset):
            raise ValueError(
                f"Which ground truth? {args.predictions} has no dataset.json; give --json with the "
                "panoptic JSON, or --dataset with a registered name."
            )
    if dataset.endswith(".json"):
        return _described(dataset)
    # Only registered names need Detectron2 and torch, which take longer to load than most scoring.
    from spatialflow.config import load_config
    from spatialflow.data.register import find_panoptic_files, register_entries

    entries = register_entries(load_config(args.config_file)) if args.config_file else ()
    files = find_panoptic_files(dataset, entries)
    return dataset, PanopticFolder(files.panoptic_json, files.panoptic_root), files.categories


def _described(path: str) -> tuple[str, PanopticFolder, None]:
    try:
        dataset = SavedDataset.open(path)
    except ValueError as e:
        raise ValueError(f"{e} For a panoptic JSON, use --json.") from e
    return dataset.name, dataset.truth, None


def _report(
    args: argparse.Namespace, name: str, score: Score, intervals: dict[str, tuple[float, float]]
) -> None:
    results = {"panoptic_seg": score.counts.metrics()}
    per_class = _per_class(score)
    print(f"{name}, {len(score.images)} images\n\n{format_results(results, intervals)}")
    if intervals:
        print(f"\n95 % intervals from {args.bootstrap} bootstrap replicates over the images.")
    if args.per_class:
        rows = [[c["name"], *_percent(c), *(str(c[k]) for k in _COUNTED)] for c in per_class]
        print("\n" + table(rows, ["class", "PQ", "SQ", "RQ", "TP", "FP", "FN"]))
    if args.csv_out:
        write_csv(args.csv_out, {name: results}, intervals)
    if args.json_out:
        details = {
            "images": len(score.images),
            "missing_images": score.missing,
            "extra_images": score.extra,
            "intervals": intervals,
            "per_class": per_class,
        }
        with open(args.json_out, "w") as f:
            json.dump(without_nan({name: results | details}), f, indent=2)


_COUNTED = ("tp", "fp", "fn")


def _per_class(score: Score) -> list[dict]:
    rows = score.counts.results()["per_class"]
    return [{**c, **rows[c["id"]]} for c in score.counts.categories]


def _percent(row: dict) -> list[str]:
    occurs = any(row[k] for k in _COUNTED)
    return [f"{100 * row[k]:.2f}" if occurs else "-" for k in ("pq", "sq", "rq")]
