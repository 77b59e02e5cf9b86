#!/usr/bin/env python
"""Train several configs with several seeds and write the table of mean and deviation.

    python tools/run_ablation.py --output output/toy_ablation --table docs/TOY_ABLATION.md \
        --seeds 1 2 3 \
        --configs toy/ablations/naive.yaml toy/spatialflow_toy.yaml

Runs that are finished are not repeated, so that a stopped ablation goes on where it was; an
unfinished one is resumed from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm import tqdm

from spatialflow import model_zoo

TRAIN_NET = Path(__file__).resolve().parents[1] / "train_net.py"
METRICS = {
    "PQ": ("panoptic_seg", "PQ"),
    "PQ Th": ("panoptic_seg", "PQ_th"),
    "PQ St": ("panoptic_seg", "PQ_st"),
    "box AP": ("bbox", "AP"),
    "mIoU": ("sem_seg", "mIoU"),
}


def train(config: str, seed: int, output: Path, opts: Sequence[str]) -> dict:
    """Train one config with one seed, unless that is done, and return its results.

    Raises:
        SystemExit: the training failed; its log is named.
    """
    results = output / "results.json"
    if not results.exists():
        output.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(TRAIN_NET), "--config-file", config, "--resume"]
        command += ["SEED", str(seed), "OUTPUT_DIR", str(output), "TEST.EVAL_PERIOD", "0", *opts]
        with (output / "stdout.txt").open("w") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise SystemExit(f"{config} with seed {seed} failed; see {output}/stdout.txt")
    (by_metric,) = json.loads(results.read_text()).values()
    return by_metric


def as_table(results: dict[str, list[dict]]) -> str:
    """Markdown: a row for each config with mean and standard deviation over its seeds.

    Args:
        results: evaluation results of each run, by config.
    """
    rows = []
    for config, runs in results.items():
        row = [config]
        for task, metric in METRICS.values():
            values = [run[task][metric] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            row.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        rows.append(row)
    return tabulate(rows, ["config", *METRICS], tablefmt="github")


def describe_machine() -> str:
    """Where the runs were made, in a line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    threads = f"{torch.get_num_threads()} threads"
    return f"{device}, {threads}, torch {torch.__version__}, Python {platform.python_version()}"


def main() -> None:
    """Parse the arguments, train what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", required=True, help="names in the model zoo")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--table", type=Path, help="Markdown file to write; default: print only")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    args = parser.parse_args()
    results: dict[str, list[dict]] = {config: [] for config in args.configs}
    # Seed by seed, so that a stopped ablation has compared something.
    runs = [(config, seed) for seed in args.seeds for config in args.configs]
    for config, seed in tqdm(runs, desc="Runs"):
        folder = args.output / Path(config).stem / f"seed_{seed}"
        path = model_zoo.get_config_file(config)
        results[config].append(train(path, seed, folder, args.opts))
    lines = [
        f"Mean and standard deviation over seeds {', '.join(map(str, args.seeds))}.",
        f"Machine: {describe_machine()}.",
        f"Overrides: `{' '.join(args.opts)}`." if args.opts else "The configs as they are.",
        "",
        as_table(results),
    ]
    print("\n".join(lines))
    if args.table:
        args.table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
