#!/usr/bin/env python
"""Draw the learning curves of an ablation, one panel for each loss and one for PQ.

    python tools/plot_ablation.py --runs output/toy_ablation --picture output/toy_ablation.png

--runs is the --output of tools/run_ablation.py. A line is the mean over the seeds, the band around
it reaches from the lowest to the highest. The panel of PQ is there for runs that were evaluated on
their way (--opts TEST.EVAL_PERIOD 100).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot as plt
from run_ablation import RECORD

PANELS = {
    "total_loss": "loss",
    "loss_cls": "class loss",
    "loss_box_reg": "box loss",
    "loss_mask": "mask loss",
    "loss_sem_seg": "stuff loss",
    "panoptic_seg/PQ": "PQ",
}
Curve = tuple[np.ndarray, np.ndarray]
"""Iterations and, for each seed, the values at them."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--picture", type=Path, required=True, help="the PNG to write")
    args = parser.parse_args()
    arms = read_arms(args.runs)
    if not arms:
        raise SystemExit(f"{args.runs} has no runs of tools/run_ablation.py.")
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    draw(arms, args.picture)


def read_arms(runs: Path) -> dict[str, dict[str, Curve]]:
    """The curves of each metric by the folder's name of an arm."""
    arms = {}
    for folder in sorted({record.parents[1] for record in runs.glob(f"*/*/{RECORD}")}):
        seeds = [read_metrics(path) for path in sorted(folder.glob("*/metrics.json"))]
        if seeds:
            arms[folder.name] = {name: curve(seeds, name) for name in PANELS}
    return arms


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """Values by metric and iteration; of iterations that were repeated after a stop the last."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        for name in PANELS:
            if name in entry:
                values[name][entry["iteration"]] = entry[name]
    return values


def curve(seeds: list[dict[str, dict[int, float]]], name: str) -> Curve:
    """A metric at the iterations that all seeds have."""
    common = sorted(set.intersection(*(set(seed.get(name, ())) for seed in seeds)))
    values = [[seed[name][i] for i in common] for seed in seeds]
    return np.array(common), np.array(values)


def draw(arms: Mapping[str, Mapping[str, Curve]], picture: Path) -> None:
    """Write the picture."""
    panels = [name for name in PANELS if any(len(arm[name][0]) > 1 for arm in arms.values())]
    rows = (len(panels) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(11, 3.2 * rows), squeeze=False)
    for axis, name in zip(axes.flat, panels, strict=False):
        for arm, metrics in arms.items():
            iterations, values = metrics[name]
            if len(iterations):
                (line,) = axis.plot(iterations, values.mean(axis=0), label=arm)
                low, high = values.min(axis=0), values.max(axis=0)
                axis.fill_between(iterations, low, high, color=line.get_color(), alpha=0.15)
        axis.set(title=PANELS[name], xlabel="iteration")
        if name.startswith(("loss", "total")):
            axis.set_yscale("log")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center")
    figure.set_layout_engine("constrained")
    figure.savefig(picture, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
