#!/usr/bin/env python
"""What the flows do to a SpatialFlow: the scales of its features and of each loss's gradients.

    python tools/measure_scales.py --config toy/spatialflow_toy_lite0.yaml --output output/scales \
        --weights output/toy_lite0/model_final.pth

writes scales.md: the root mean square of every FPN level, stage and flow on each level, and the
norm of the gradient that each loss sends into each part, before the training and, with --weights,
after it. The pictures are the first of the training set, in its own order.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn

from spatialflow import load_config, model_zoo
from spatialflow.checkpoint import SafeCheckpointer
from spatialflow.data import PanopticMapper, prepare_datasets
from spatialflow.data.mapper import build_resize
from spatialflow.modeling import SpatialFlow
from spatialflow.modeling.flows import Flow
from spatialflow.modeling.subnets import DeformableStage, Stage
from spatialflow.utils.files import atomic_write

Scales = dict[str, dict[str, float]]
"""A number by row and column of a table."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="a SpatialFlow of the model zoo")
    parser.add_argument("--weights", help="of the end of its training")
    parser.add_argument("--output", type=Path, required=True, help="folder of scales.md")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    args = parser.parse_args()
    cfg = load_config(model_zoo.get_config_file(args.config), args.opts)
    prepare_datasets(cfg)
    batch = first_images(cfg, args.images)
    model = build_spatialflow(cfg)
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    measured = {"before": scales(model, batch)}
    if args.weights:
        SafeCheckpointer(model).load(args.weights)
        measured["after"] = scales(model, batch)
    text = as_markdown(measured)
    args.output.mkdir(parents=True, exist_ok=True)
    with atomic_write(str(args.output / "scales.md"), "w") as f:
        f.write(text)
    print(text)


def build_spatialflow(cfg: CfgNode) -> SpatialFlow:
    """The model of a config, with the weights of its seed.

    Raises:
        SystemExit: it is another model, which has no stages.
    """
    torch.manual_seed(max(cfg.SEED, 0))
    model = build_model(cfg)
    if not isinstance(model, SpatialFlow):
        raise SystemExit(f"{cfg.MODEL.META_ARCHITECTURE} has no stages and flows to measure.")
    return model


def first_images(cfg: CfgNode, number: int) -> list[dict]:
    """The first images of the training set, at the size of the test, with their targets."""
    resize = build_resize(cfg, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    mapper = PanopticMapper(cfg, is_train=True, augmentations=[resize])
    entries = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    return [mapper(entry) for entry in itertools.islice(entries, number)]


def scales(model: SpatialFlow, batch: Sequence[dict]) -> tuple[Scales, Scales]:
    """Root mean squares of features, :func:`feature_scales`, and norms of gradients."""
    model.train()
    with feature_scales(model) as features:
        losses = model(batch)
    return dict(features), gradient_norms(model, losses)


@contextmanager
def feature_scales(model: SpatialFlow) -> Iterator[Scales]:
    """Root mean square of what each level, stage and flow gives in the passes inside.

    Rows are "P", "cls 2" and "reg to cls 2", columns the levels "p3" to "p7".
    """
    found: Scales = defaultdict(dict)
    sizes: dict[torch.Size, str] = {}

    def pyramid(module: nn.Module, args: tuple, output: dict[str, Tensor]) -> None:
        for level, feature in output.items():
            sizes[feature.shape[-2:]] = level
            found["P"][level] = rms(feature)

    def part(name: str):
        def record(module: nn.Module, args: tuple, output: Tensor) -> None:
            found[name][sizes[output.shape[-2:]]] = rms(output)

        return record

    hooks = [model.backbone.register_forward_hook(pyramid)]
    for name, module in model.subnets.named_modules():
        if isinstance(module, Stage | DeformableStage | Flow):
            hooks.append(module.register_forward_hook(part(row_name(name))))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def row_name(module: str) -> str:
    """ "cls 2" of "cls.1" and "reg to cls 2" of "cls.1.flows.reg"."""
    task, stage, *flow = module.split(".")
    target = f"{task} {int(stage) + 1}"
    return f"{flow[1]} to {target}" if flow else target


def gradient_norms(model: SpatialFlow, losses: Mapping[str, Tensor]) -> Scales:
    """Euclidean norm of the gradient of each loss (rows) in each part of the model (columns)."""
    parts = parameters_by_part(model)
    norms: Scales = {}
    for name, loss in losses.items():
        norms[name] = {}
        for part, parameters in parts.items():
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            squares = [g.detach().square().sum() for g in gradients if g is not None]
            norms[name][part] = float(sum(squares, start=torch.zeros(())).sqrt())
    return norms


def parameters_by_part(model: SpatialFlow) -> dict[str, list[nn.Parameter]]:
    """The trained parameters by part: backbone, pyramid, sub-networks, their flows, heads."""
    parts: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[part_of(name)].append(parameter)
    return parts


def part_of(parameter: str) -> str:
    """The part of :func:`parameters_by_part` that a parameter belongs to."""
    first, second, *_ = parameter.split(".")
    if first == "subnets":
        return f"flows to {second}" if ".flows." in parameter else second
    if first == "backbone":
        return "backbone" if second == "bottom_up" else "pyramid"
    return "heads"


def rms(feature: Tensor) -> float:
    """Root mean square of a tensor."""
    return float(feature.detach().float().square().mean().sqrt())


def as_markdown(measured: Mapping[str, tuple[Scales, Scales]]) -> str:
    """Tables of the features and of the gradients, under a heading for each time."""
    lines = []
    for time, (features, gradients) in measured.items():
        lines += [f"## {time} the training", "", table(features, "rms", ".2f"), ""]
        lines += [table(gradients, "gradient norm", ".3f"), ""]
    return "\n".join(lines)


def table(scales: Scales, corner: str, form: str) -> str:
    """A Markdown table; a cell that does not exist stays empty."""
    columns = sorted({column for row in scales.values() for column in row})
    rows = [
        [name, *(format(row[column], form) if column in row else "" for column in columns)]
        for name, row in scales.items()
    ]
    return tabulate(rows, [corner, *columns], tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
