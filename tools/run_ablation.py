#!/usr/bin/env python
"""Train several configs with several seeds and write the table of mean and deviation.

    python tools/run_ablation.py --output output/toy_ablation --table docs/TOY_ABLATION.md \
        --seeds 1 2 3 \
        --configs toy/spatialflow_toy.yaml "toy/spatialflow_toy.yaml MODEL.SPATIALFLOW.FLOWS []"

A config may be followed by overrides of its own, in quotes. The last column compares with the first
config, seed by seed; --bootstrap 1000 keeps the predictions and adds intervals of PQ and mIoU over
the images.

With --cpu-seconds every config trains for as much processor time as every other: iterations of all
of them are timed first, in turns, and SOLVER.MAX_ITER is set by that. --jobs 2 with
OMP_NUM_THREADS=1 in the environment trains two runs at a time, one thread each.

Runs that are finished are not repeated, so that a stopped ablation goes on where it was; an
unfinished one is resumed from its last checkpoint. Each run has a folder below --output, with a
record of config, overrides and seed: a folder whose record says otherwise is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from ablation_tables import as_table, resample
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from spatialflow import load_config, model_zoo
from spatialflow.data import prepare_datasets
from spatialflow.engine import Trainer
from spatialflow.utils.files import atomic_write

TRAIN_NET = Path(__file__).resolve().parents[1] / "train_net.py"
RECORD = "ablation_run.json"
"""File in the folder of a run that says which run it is."""
BUDGET = "iterations.json"
"""File in the folder of all runs with the iterations that were found for --cpu-seconds."""
UNTIMED_ITERATIONS, TIMED_ITERATIONS = 3, 12
OTHER_FOLDER = "Give another --output, or remove this folder to train anew."


class Arm(NamedTuple):
    """A config with overrides: what the runs of a row share."""

    name: str
    config: str
    opts: list[str]

    @classmethod
    def parse(cls, text: str, opts: Sequence[str]) -> Arm:
        """``CONFIG KEY VALUE ...`` as the command line has it, and the overrides of all arms."""
        config, *own = shlex.split(text)
        return cls(text, config, [*opts, *own])


def run_folder(output: Path, arm: str, seed: int) -> Path:
    """Folder of a run: the whole name of the config, since many differ in their folder only, and
    the overrides of its arm."""
    name = arm.replace(".yaml", "", 1).replace("/", "__")
    return output / re.sub(r"[^\w.-]+", "_", name).strip("_") / f"seed_{seed}"


def describe_run(config: str, seed: int, opts: Sequence[str]) -> dict:
    """What makes a run the one it is.

    Args:
        config: name in the model zoo.
        seed: SEED of the run.
        opts: ``KEY VALUE ...`` overrides.

    Returns:
        These three, and the SHA-256 of the whole config that they give.
    """
    cfg = load_config(model_zoo.get_config_file(config), [*opts, "SEED", str(seed)])
    digest = hashlib.sha256(cfg.dump().encode()).hexdigest()
    return {"config": config, "seed": seed, "opts": list(opts), "config_sha256": digest}


def claim(folder: Path, run: dict) -> None:
    """Make the folder of a run, with a record of which run it is.

    Raises:
        SystemExit: the folder is another run's, or nobody knows whose.
    """
    record = folder / RECORD
    if not record.exists():
        if folder.exists() and any(folder.iterdir()):
            raise SystemExit(f"{folder} has files but no {RECORD}. {OTHER_FOLDER}")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(str(record), "w") as f:
            json.dump(run, f, indent=2)
        return
    found = json.loads(record.read_text())
    if found == run:
        return
    different = [key for key in run if found.get(key) != run[key]]
    raise SystemExit(
        f"{folder} is the folder of another run than the one asked for:\n"
        + "\n".join(f"  {key}: {found.get(key)} there, {run[key]} asked for" for key in different)
        + f"\n(config_sha256 is of the config with all that it inherits.) {OTHER_FOLDER}"
    )


def iterations_within(arms: Sequence[Arm], seconds: float, output: Path) -> list[int]:
    """How many iterations of each arm take a number of CPU seconds, as timed the first time.

    Args:
        arms: those that are compared.
        seconds: processor time of all threads.
        output: folder of the runs, where the numbers are kept for runs that are resumed.
    """
    record = output / BUDGET
    known = json.loads(record.read_text()) if record.exists() else {}
    keys = [f"{arm.config} {' '.join(arm.opts)} {seconds:g}" for arm in arms]
    if any(key not in known for key in keys):
        times = seconds_per_iteration(arms)
        known |= {k: max(1, int(seconds / t)) for k, t in zip(keys, times, strict=True)}
        output.mkdir(parents=True, exist_ok=True)
        with atomic_write(str(record), "w") as f:
            json.dump(known, f, indent=2)
    return [known[key] for key in keys]


def seconds_per_iteration(arms: Sequence[Arm]) -> list[float]:
    """Mean CPU seconds of an iteration of each arm, over TIMED_ITERATIONS after some others.

    The arms take turns, iteration by iteration, since a machine that others use is slower at one
    time than at another: what is compared is timed under the same conditions.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainers = [build_trainer(arm, folder) for arm in arms]
        times = [0.0] * len(arms)
        with EventStorage() as storage:
            for i in range(UNTIMED_ITERATIONS + TIMED_ITERATIONS):
                for number, trainer in enumerate(trainers):
                    start = time.process_time()
                    storage.iter = trainer.iter = i
                    trainer.run_step()
                    if i >= UNTIMED_ITERATIONS:
                        times[number] += time.process_time() - start
    return [total / TIMED_ITERATIONS for total in times]


def build_trainer(arm: Arm, folder: str) -> Trainer:
    """The trainer of an arm, with a folder for its output."""
    cfg = load_config(model_zoo.get_config_file(arm.config), arm.opts)
    cfg.OUTPUT_DIR = folder
    prepare_datasets(cfg)
    return Trainer(cfg)


def train(run: dict, folder: Path) -> dict:
    """Train one config with one seed, unless that is done, and return its results.

    Args:
        run: see :func:`describe_run`.
        folder: of the run, see :func:`claim`.

    Raises:
        SystemExit: the training failed; its log is named.
    """
    results = folder / "results.json"
    if not results.exists():
        path = model_zoo.get_config_file(run["config"])
        command = [sys.executable, str(TRAIN_NET), "--config-file", path, "--resume"]
        # What decides about folder and seed comes last, where nothing overrides it.
        command += ["TEST.EVAL_PERIOD", "0", *run["opts"]]
        command += ["SEED", str(run["seed"]), "OUTPUT_DIR", str(folder)]
        with (folder / "stdout.txt").open("w") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise SystemExit(
                    f"{run['config']} with seed {run['seed']} failed; see {folder}/stdout.txt"
                )
    (by_metric,) = json.loads(results.read_text()).values()
    return by_metric


def with_budget(arms: Sequence[Arm], seconds: float | None, output: Path) -> list[Arm]:
    """The arms with the MAX_ITER that takes so many CPU seconds; as they are without them."""
    if not seconds:
        return list(arms)
    numbers = iterations_within(arms, seconds, output)
    return [
        arm._replace(opts=[*arm.opts, "SOLVER.MAX_ITER", str(number)])
        for arm, number in zip(arms, numbers, strict=True)
    ]


def describe_budget(seconds: float | None, arms: Sequence[Arm]) -> list[str]:
    """A line on equal processor time with the iterations of each arm; none without it."""
    if not seconds:
        return []
    iterations = ", ".join(f"{arm.name} {arm.opts[-1]}" for arm in arms)
    return [f"{seconds:g} CPU seconds of training each; iterations: {iterations}."]


def describe_machine() -> str:
    """Where the runs were made, in a line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    threads = f"{torch.get_num_threads()} threads"
    return f"{device}, {threads}, torch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    """Parse the arguments, train what is missing, write the table."""
    args = parser().parse_args()
    opts = [*args.opts, *(["TEST.SAVE_PREDICTIONS", "True"] if args.bootstrap else [])]
    arms = [Arm.parse(text, opts) for text in args.configs]
    arms = with_budget(arms, args.cpu_seconds, args.output)
    # Seed by seed, so that a stopped ablation has compared something.
    runs = [(arm, seed) for seed in args.seeds for arm in arms]
    wanted = [describe_run(arm.config, seed, arm.opts) for arm, seed in runs]
    folders = [run_folder(args.output, arm.name, seed) for arm, seed in runs]
    for run, folder in zip(wanted, folders, strict=True):
        claim(folder, run)  # all of them first, so that a mix-up shows before hours of training
    with ThreadPoolExecutor(args.jobs) as pool:
        trained = list(tqdm(pool.map(train, wanted, folders), desc="Runs", total=len(runs)))
    results: dict[str, list[dict]] = {arm.name: [] for arm in arms}
    for (arm, _), result in zip(runs, trained, strict=True):
        results[arm.name].append(result)
    resampled = {
        arm.name: resample(
            [run_folder(args.output, arm.name, seed) for seed in args.seeds], args.bootstrap
        )
        for arm in arms
        if args.bootstrap
    }
    lines = [*describe(args, arms), "", as_table(results, resampled)]
    print("\n".join(lines))
    if args.table:
        args.table.write_text("\n".join(lines) + "\n")


def parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--configs", nargs="+", required=True, help='names in the model zoo, or "NAME KEY VALUE"')
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add("--output", type=Path, required=True, help="folder of the runs")
    add("--table", type=Path, help="Markdown file to write; default: print only")
    add("--cpu-seconds", type=float, help="processor time of each training")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--bootstrap", type=int, default=0, metavar="N", help="intervals of N draws of the images")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for all")
    return parser


def describe(args: argparse.Namespace, arms: Sequence[Arm]) -> list[str]:
    """What was run, in lines: seeds, machine, overrides, processor time."""
    seeds = ", ".join(map(str, args.seeds))
    several = len(args.seeds) > 1
    return [
        f"Mean and standard deviation over seeds {seeds}."
        if several
        else f"One run each, seed {seeds}.",
        f"Machine: {describe_machine()}.",
        f"Overrides: `{' '.join(args.opts)}`." if args.opts else "The configs as they are.",
        *describe_budget(args.cpu_seconds, arms),
    ]


if __name__ == "__main__":
    main()
