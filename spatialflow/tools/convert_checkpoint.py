"""Convert a checkpoint of SpatialFlow's authors, or of mmdetection's HTC, for this project's model.

The config's MODEL.META_ARCHITECTURE says which of them it is. The command reads tensors only,
prints what went where, and writes nothing unless the weights fill the config's model completely.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor

import spatialflow.modeling  # noqa: F401  registers the model
from spatialflow.checkpoint import load_tensors, mmdetection_htc, official
from spatialflow.checkpoint.mmdetection import check_fit
from spatialflow.config import load_config
from spatialflow.data import dataset_categories, prepare_datasets
from spatialflow.paths import refuse_overwriting
from spatialflow.utils.command_parser import CommandParser
from spatialflow.utils.files import atomic_write

REORDERED = {
    official.CLS: "anchors reordered",
    official.REG: "anchors reordered",
    official.STUFF: "'other' moved to 0",
}


class Converter(NamedTuple):
    """How the checkpoints of a model are converted.

    Attributes:
        convert: makes this project's tensors of theirs, for a config.
        rename: gives this project's name of one of theirs.
    """

    convert: Callable[[Mapping[str, Tensor], CfgNode], dict[str, Tensor]]
    rename: Callable[[str], str | None]


def _convert_spatialflow(state: Mapping[str, Tensor], cfg: CfgNode) -> dict[str, Tensor]:
    stuff = dataset_categories(cfg.DATASETS.TRAIN[0]).stuff
    other = official.other_label(category.id for category in stuff if not category.isthing)
    return official.convert_state_dict(state, other_label=other)


CONVERTERS = {
    "SpatialFlow": Converter(_convert_spatialflow, official.rename),
    "HybridTaskCascade": Converter(
        lambda state, cfg: mmdetection_htc.convert_state_dict(state), mmdetection_htc.rename
    ),
}
"""By MODEL.META_ARCHITECTURE."""


def convert(source: str, config_file: str) -> dict[str, Tensor]:
    """The converted weights, after printing what went where.

    Args:
        source: the authors' checkpoint.
        config_file: the config whose model the weights are for; its dataset need not be there.

    Raises:
        FileNotFoundError, KeyError, ValueError: see ``load_tensors``, ``load_config`` and
            :mod:`spatialflow.checkpoint.official` and ``mmdetection_htc``.
    """
    # The model is built for its names and shapes only.
    cfg = load_config(config_file, ["MODEL.DEVICE", "meta"])
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in CONVERTERS:
        raise ValueError(
            f"Config {config_file}: checkpoints are converted for {' and '.join(CONVERTERS)}, not "
            f"for {name}."
        )
    prepare_datasets(cfg, check_files=False)
    with torch.device("meta"):
        model_state = build_model(cfg).state_dict()
    checkpoint = load_tensors(source)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{source} has no 'state_dict', as the authors' checkpoints have.")
    weights = CONVERTERS[name].convert(checkpoint["state_dict"], cfg)
    check_fit(weights, model_state)
    print(table(checkpoint["state_dict"], weights, CONVERTERS[name].rename))
    return weights


def table(
    state: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    rename: Callable[[str], str | None],
) -> str:
    """What went where, a line for each tensor of the authors' checkpoint."""
    rows = []
    for key in state:
        name = rename(key)
        if name is not None and name in weights:
            change = next((text for part, text in REORDERED.items() if key.startswith(part)), "")
            rows.append([key, name, "x".join(map(str, weights[name].shape)), change])
        else:
            rows.append([key, "-", "", "not needed"])
    return tabulate(rows, headers=["theirs", "ours", "shape", "change"])


EXAMPLES = """
%(prog)s spatialflow_r50.pth weights/released/spatialflow_R_50_20e.pth \\
  --config-file configs/released/spatialflow_R_50_20e.yaml
%(prog)s htc_r50_fpn_20e_coco.pth weights/htc_R_50_20e.pth \\
  --config-file configs/HTC/htc_R_50_20e.yaml
"""


def parser() -> CommandParser:
    """The two checkpoints and the config."""
    parser = CommandParser(
        prog="spatialflow convert-checkpoint", examples=EXAMPLES, description=__doc__
    )
    parser.add_argument("input", help="the authors' .pth file")
    parser.add_argument("output", type=Path, help="the .pth file to write")
    parser.add_argument(
        "--config-file", required=True, help="one of configs/released/, configs/HTC/"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Read, convert, write."""
    refuse_overwriting([args.output], [args.input, args.config_file], "output")
    weights = convert(args.input, args.config_file)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(str(args.output), "wb") as f:
        torch.save({"model": weights, "__author__": "the authors, converted"}, f)
    print(f"{len(weights)} tensors written to {args.output}")
