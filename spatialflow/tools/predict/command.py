"""``spatialflow predict``: many pictures, on one machine or several, resumable."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spatialflow.errors import UsageError, UserError
from spatialflow.saved.dataset import SavedDataset
from spatialflow.saved.predictions import PREDICTIONS
from spatialflow.utils.command_parser import CommandParser, add_import_argument
from spatialflow.utils.files import digest_of
from spatialflow.utils.text import table

from ..executors import Settings, add_executor_arguments, open_executor
from ..executors.drive import Failure, drive
from .formats import FORMATS, check_format
from .inputs import ImageIds, Source, open_source
from .manifest import Manifest, plan
from .merge import ERRORS, merge
from .model import ModelChoice
from .shard import (
    TRASH,
    WORK,
    Job,
    Shard,
    ShardResult,
    discard,
    peak_memory,
    predict_shard,
    read_shard,
    shard_folder,
)

UNFINISHED = os.EX_TEMPFAIL
"""Exit code of a run that was stopped: run it again."""
FAILED_IN_A_ROW = 3
"""Shards that fail one after the other, none done in between, end the run."""

EXAMPLES = """
# one machine; the model that comes with the project
%(prog)s --input photos/ --output predicted --workers 4
# weights of yours; a list of paths, or a parquet file with a column path
%(prog)s --input photos.txt --output predicted --config-file C --weights W --workers 4
# the same again: what is missing is done, and nothing else
%(prog)s --input photos.txt --output predicted --config-file C --weights W --workers 4
# the machines of a Dask cluster
%(prog)s --input photos/ --output predicted --executor dask --scheduler tcp://host:8786
# an exported file, without PyTorch; run-length masks in place of PNGs
%(prog)s --input photos/ --output predicted --model model.onnx --format jsonl
# the ids of a dataset, so that score, report and submit find its ground truth
%(prog)s --input val/ --output predicted --json panoptic_val.json
"""
_EPILOG = """
Pictures that cannot be read or segmented are in OUTPUT/errors.jsonl. SIGTERM or Ctrl-C finishes the
shards in flight; exit code 75 then says: run it again. 1: shards failed, or an error."""


def parser() -> CommandParser:
    """Pictures, a model, where to write, and who does it."""
    parser = CommandParser(
        prog="spatialflow predict",
        examples=EXAMPLES,
        description="Segment many pictures, by several processes or machines. A run that was "
        "stopped or killed goes on where it was.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add_import_argument(parser)
    add("--input", required=True, type=Path, help="a folder, a list of paths, or a parquet file")
    add("--output", required=True, type=Path, help="folder of the results")
    add("--json", help="JSON of the pictures, panoptic or with images: their ids, ground truth")
    add("--panoptic", default="", help="PNGs of a panoptic JSON; default: its name without .json")
    add("--config-file", help="config of the weights (default: a model that comes with it)")
    add("--weights", help="default: MODEL.WEIGHTS, or those that come with the config")
    add("--model", metavar="FILE", help="an exported file in place of a config")
    add(
        "--predictor",
        metavar="MODULE:FUNCTION",
        help="a function of yours in place of a config; it returns a PanopticPredictor",
    )
    add("--workers", type=_positive, default=1, help="processes (%(default)s), each with the model")
    add("--threads", type=_positive, default=1, help="of each on the CPU (%(default)s)")
    add_executor_arguments(parser, "processes")
    add("--shard-size", type=_positive, default=100, help="pictures a shard (%(default)s)")
    add("--format", choices=list(FORMATS), default="coco", help="(default: %(default)s)")
    add("--deadline", type=float, metavar="SECONDS", help="of a shard, then another worker has it")
    add(
        "--max-megapixels",
        type=float,
        default=64,
        help="larger pictures are errors, before they are decoded (%(default)s)",
    )
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides, last")
    return parser


def run(args: argparse.Namespace) -> int:
    """Plan, predict what is missing, write the index; returns the exit code."""
    if args.panoptic and not args.json:
        raise UsageError("--panoptic is the folder of the PNGs of a --json.")
    check_format(args.format)
    source = open_source(args.input, args.output)
    model = model_of(args)
    args.output.mkdir(parents=True, exist_ok=True)
    from .lock import locked

    try:
        with locked(args.output) as alone:
            return _run_locked(args, source, model, alone)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{args.output}: {e.strerror}. What is finished stays. Make room, and run the same "
            "command again."
        ) from e


def model_of(args: argparse.Namespace) -> ModelChoice:
    """The model that the arguments name, with absolute paths, for workers elsewhere."""
    weights = ["MODEL.WEIGHTS", _absolute(args.weights)] if args.weights else []
    return ModelChoice(
        config_file=_absolute(args.config_file),
        opts=(*args.opts, *weights),
        exported=_absolute(args.model),
        predictor=args.predictor,
        modules=tuple(_absolute(m) if m.endswith(".py") else m for m in args.modules),
        threads=args.threads,
        max_pixels=int(args.max_megapixels * 1e6),
    )


@dataclass
class _Progress:
    """What was done, for the bar and the table.

    Attributes:
        manifest: the plan.
        before: pictures of the shards that an earlier run finished.
        pictures: those of this run.
        done, failed: shards; the failed ones with the reason.
        errors: pictures without result, of all shards.
        memory: the most that a worker had resident, in megabytes.
    """

    manifest: Manifest
    before: int = 0
    pictures: int = 0
    done: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    errors: int = 0
    memory: float = 0.0
    in_a_row: int = 0
    begun: float = field(default_factory=time.monotonic)

    def add(self, index: int, result: ShardResult | Failure, before: bool = False) -> None:
        if isinstance(result, Failure):
            self.failed[index] = result.message
            self.in_a_row += 1
            return
        self.done, self.in_a_row = self.done + 1, 0
        self.errors += len(result.errors)
        self.memory = max(self.memory, result.memory)
        if before:
            self.before += result.pictures
        else:
            self.pictures += result.pictures

    def table(self) -> str:
        seconds = time.monotonic() - self.begun
        rows = [
            ["pictures", f"{self.before + self.pictures:,} of {self.manifest.pictures:,}"],
            ["of these now", f"{self.pictures:,}"],
            ["without result", f"{self.errors:,}"],
            ["shards", f"{self.done:,} of {self.manifest.shards:,}"],
            ["failed shards", f"{len(self.failed):,}"],
            ["seconds", f"{seconds:.1f}"],
            ["pictures a second", f"{self.pictures / seconds:.1f}"],
            ["memory of this process", f"{peak_memory():.0f} MB"],
            ["memory of a worker", f"{self.memory:.0f} MB"],
        ]
        return table(rows, ["", ""], left=1)


def _run_locked(args: argparse.Namespace, source: Source, model: ModelChoice, alone: bool) -> int:
    work = args.output / WORK
    if alone:  # what clients left that were killed
        discard(work)
        for trash in args.output.glob(f"{TRASH}*"):
            shutil.rmtree(trash, ignore_errors=True)
    identity = model.identity()
    settings: dict[str, Any] = {**identity, "format": args.format, "shard_size": args.shard_size}
    settings["dataset"] = digest_of(args.json) if args.json else None
    manifest = plan(args.output, source, ImageIds(args.json, source), settings, 2 * args.workers)
    (args.output / PREDICTIONS).mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    job = Job(
        output=os.path.abspath(args.output),
        root=str(source.root),
        manifest=manifest.digest,
        run=uuid.uuid4().hex[:12],
        model=model,
        identity=identity,
        format=args.format,
        deadline=args.deadline,
    )
    progress = _Progress(manifest)
    for index in range(manifest.shards):
        if shard_folder(args.output, index).exists():
            progress.add(index, read_shard(args.output, index, manifest.digest), before=True)
    stopped = False
    try:
        if progress.done < manifest.shards:
            stopped = _predict_missing(args, job, manifest, progress)
    finally:
        discard(work if alone else work / job.run)
    if progress.done == manifest.shards:
        if args.json:
            dataset_of(args, source).save(str(args.output))
        merge(manifest, args.format)
    return _report(args, progress, stopped)


def _predict_missing(
    args: argparse.Namespace, job: Job, manifest: Manifest, progress: _Progress
) -> bool:
    """Predict the shards that are not there; returns whether that was stopped."""
    # A worker ends itself at the deadline; this is for one that cannot, and loads the model first.
    limit = None if args.deadline is None else 2 * args.deadline + 120
    shards = (
        Shard(job, index, pictures)
        for index, pictures in enumerate(manifest)
        if not shard_folder(job.output, index).exists()
    )
    (Path(job.output) / WORK / job.run).mkdir()
    executor = open_executor(args.executor, Settings(args.workers, args.scheduler, limit))
    bar = tqdm(total=manifest.pictures, initial=progress.before, unit="picture", file=sys.stderr)
    try:
        with drained() as signalled, bar:
            results = drive(
                executor,
                predict_shard,
                shards,
                lambda: signalled() or progress.in_a_row >= FAILED_IN_A_ROW,
            )
            for shard, result in results:
                progress.add(shard.index, result)
                bar.set_postfix(errors=progress.errors, failed=len(progress.failed), refresh=False)
                bar.update(progress.before + progress.pictures - bar.n)
            return signalled()
    finally:
        executor.close()


def dataset_of(args: argparse.Namespace, source: Source) -> SavedDataset:
    """The dataset that ``--json`` describes, for the other commands."""
    name = Path(args.json).stem
    root = args.panoptic or os.path.splitext(args.json)[0]
    if os.path.isdir(root):
        return SavedDataset(name, str(source.root), panoptic_root=root, panoptic_json=args.json)
    return SavedDataset(name, str(source.root), images_json=args.json)


def _report(args: argparse.Namespace, progress: _Progress, stopped: bool) -> int:
    print(progress.table())
    for index, message in list(progress.failed.items())[:5]:
        print(f"error: shard {index} failed: {message}", file=sys.stderr)
    if progress.done == progress.manifest.shards:
        if progress.errors:
            print(f"Pictures without result are in {args.output / ERRORS}.")
        return 0
    print(f"{args.output} is not finished: run the same command again.", file=sys.stderr)
    return UNFINISHED if stopped and not progress.failed else 1


@contextmanager
def drained() -> Iterator[Callable[[], bool]]:
    """While it lasts, the first SIGTERM or SIGINT is remembered, the second one interrupts.

    Yields:
        Whether there was one.
    """
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        tqdm.write("Finishing the shards in flight; once more ends at once.", file=sys.stderr)

    before = {s: signal.signal(s, receive) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _absolute(path: Any) -> Any:
    """A path of a file that is here, absolute; anything else, such as a URL, as it is."""
    return os.path.abspath(path) if path and os.path.exists(path) else path


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text}")
    return int(text)
