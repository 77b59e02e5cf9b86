"""``spatialflow convert-weights``: a checkpoint's weights alone, in another format or precision."""

from __future__ import annotations

import argparse
import os

from spatialflow.checkpoint.weights_file import load_weights, save_weights
from spatialflow.utils.command_parser import CommandParser


def parser() -> CommandParser:
    """Two files and the precision."""
    parser = CommandParser(
        prog="spatialflow convert-weights",
        examples="""\
%(prog)s output/toy/model_final.pth toy.safetensors
%(prog)s output/toy/model_final.pth toy_half.pth --half
""",
        description="Write the weights of a checkpoint without the state of its training. The "
        "endings of the files, .pth or .safetensors, say the format; MODEL.WEIGHTS takes both.",
    )
    parser.add_argument("input", help="checkpoint or weights, .pth or .safetensors")
    parser.add_argument("output", help="the .pth or .safetensors file to write")
    parser.add_argument(
        "--half", action="store_true", help="in half precision, which models of float32 load, too"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Read, convert, write."""
    tensors = load_weights(args.input)
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    save_weights(tensors, args.output, half=args.half)
    size = os.path.getsize(args.output) / 1e6
    print(f"{len(tensors)} tensors written to {args.output}, {size:.1f} MB")
