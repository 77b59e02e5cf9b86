"""``spatialflow torchvision-weights``: torchvision's ImageNet weights as a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torchvision.models import get_model_weights, list_models

from spatialflow.checkpoint.torchvision_weights import convert
from spatialflow.errors import UsageError
from spatialflow.utils.command_parser import CommandParser


def parser() -> CommandParser:
    """A model and a file."""
    parser = CommandParser(
        prog="spatialflow torchvision-weights",
        examples="%(prog)s resnext101_64x4d weights/X-101-64x4d.pth",
        description="Download torchvision's ImageNet weights and write a checkpoint to train from.",
    )
    parser.add_argument("name", help="torchvision's name of a ResNet or ResNeXt")
    parser.add_argument("output", type=Path, help="the .pth file to write")
    return parser


def run(args: argparse.Namespace) -> None:
    """Fetch, convert, write."""
    names = list_models(include=["resnet*", "resnext*"])
    if args.name not in names:
        raise UsageError(f"{args.name} is none of torchvision's {', '.join(names)}.")
    weights = get_model_weights(args.name).IMAGENET1K_V1
    model = convert(weights.get_state_dict(progress=True))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model}, args.output)
    print(f"{len(model)} tensors written to {args.output}")
