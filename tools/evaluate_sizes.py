#!/usr/bin/env python
"""PQ of trained models on pictures that are shown smaller and larger than in their config's test.

    python tools/evaluate_sizes.py --output output/sizes --factors 0.75 1 1.25 2 \
        --models toy/spatialflow_toy_lite0.yaml=output/toy_lite0/model_final.pth

Anchors and everything else stay as they were trained. An evaluation that is finished is not
repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from tabulate import tabulate

from spatialflow import load_config, model_zoo
from spatialflow.data import prepare_datasets
from spatialflow.engine import Trainer
from spatialflow.inference import load_model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="CONFIG=WEIGHTS", help="of the model zoo")
    add("--factors", nargs="+", type=float, default=[0.75, 1.0, 1.25, 2.0], help="of the size")
    add("--output", type=Path, required=True, help="folder of the results")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for all")
    args = parser.parse_args()
    rows = []
    for model in args.models:
        config, _, weights = model.partition("=")
        configs = [config_at(config, weights, f, args.output, args.opts) for f in args.factors]
        rows.append([model, *(f"{evaluate(cfg):.1f}" for cfg in configs)])
    print(as_table(rows, args.factors))


def config_at(
    config: str, weights: str, factor: float, output: Path, opts: Sequence[str] = ()
) -> CfgNode:
    """The config for a test with pictures at a factor of its size, in a folder of its own.

    Args:
        config: name in the model zoo.
        weights: of the trained model.
        factor: of the shorter and the longer side.
        output: folder of all evaluations.
        opts: further ``KEY VALUE ...`` overrides.
    """
    cfg = load_config(model_zoo.get_config_file(config), [*opts, "MODEL.WEIGHTS", weights])
    cfg.INPUT.MIN_SIZE_TEST = round(factor * cfg.INPUT.MIN_SIZE_TEST)
    cfg.INPUT.MAX_SIZE_TEST = round(factor * cfg.INPUT.MAX_SIZE_TEST)
    name = f"{config.removesuffix('.yaml')} {weights} {factor:g}".replace("/", "_")
    cfg.OUTPUT_DIR = str(output / name.replace(" ", "__"))
    prepare_datasets(cfg)
    return cfg


def evaluate(cfg: CfgNode) -> float:
    """PQ in percent, from ``results.json`` where the evaluation is finished."""
    results = Path(cfg.OUTPUT_DIR, "results.json")
    if not results.exists():
        Trainer.test(cfg, load_model(cfg))
    (by_task,) = json.loads(results.read_text()).values()
    return by_task["panoptic_seg"]["PQ"]


def as_table(rows: Sequence[Sequence[str]], factors: Sequence[float]) -> str:
    """Markdown: PQ of each model (rows) at each factor (columns)."""
    columns = ["PQ at", *(f"{factor:g}x" for factor in factors)]
    return tabulate(rows, columns, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
