"""``spatialflow export``: a trained model as a file that runs without PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from spatialflow.errors import UserError
from spatialflow.export.graph import Stop
from spatialflow.export.write import FORMATS, Options, check, trace_model, write
from spatialflow.inference.predictor import Predictor
from spatialflow.utils.command_parser import CommandParser, add_import_argument

from .demo import find_images, read_config

EXAMPLES = """
# from picture to panoptic map; `pip install ./runtime onnxruntime` runs it
%(prog)s --config-file C --weights W --output model.onnx
# for OpenVINO: half the file, or 8 bits with the ranges of some pictures of yours
%(prog)s --config-file C --weights W --format openvino --output model.xml --half
%(prog)s --config-file C --weights W --format openvino --output model.xml --calibrate photos/
# boxes, masks and stuff scores without the merge; only what is before boxes, for TensorRT
%(prog)s --config-file C --weights W --output model.onnx --stop masks
%(prog)s --config-file C --weights W --output model.onnx --stop dense
"""


def parser() -> CommandParser:
    """A config, its weights, and the file."""
    parser = CommandParser(prog="spatialflow export", examples=EXAMPLES, description=__doc__)
    add_import_argument(parser)
    parser.add_argument("--config-file", help="config the weights belong to (default: as demo)")
    parser.add_argument("--weights", help="default: MODEL.WEIGHTS, or those that come with it")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx")
    parser.add_argument(
        "--stop", choices=get_args(Stop), default="panoptic", help="the last step in the file"
    )
    parser.add_argument("--half", action="store_true", help="OpenVINO: weights in 16 bits")
    parser.add_argument(
        "--calibrate",
        nargs="+",
        default=[],
        metavar="PICTURES",
        help="8 bits, with the ranges that these files, folders or globs have",
    )
    parser.add_argument("--compile", action="store_true", help="pt2: compile for this machine")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides, last on the line"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Load the model, trace it, write the file."""
    pictures = find_images(args.calibrate, args.output)
    options = Options(args.format, args.stop, args.half, pictures, args.compile)
    check(args.output, options)
    opts = ["MODEL.DEVICE", "cpu", *args.opts]
    if args.weights:
        opts += ["MODEL.WEIGHTS", args.weights]
    predictor = Predictor(read_config(args.config_file, opts))
    if predictor.cfg.TEST.AUG.ENABLED or predictor.cfg.TEST.ENSEMBLE.MEMBERS:
        raise UserError("One model with one view can be exported; set TEST.AUG.ENABLED False.")
    model, cfg = predictor.model, predictor.cfg
    write(trace_model(model, cfg, predictor.categories, args.stop), args.output, options)
    size = sum(f.stat().st_size for f in args.output.parent.glob(f"{args.output.stem}.*")) / 1e6
    print(f"{args.output} written, {size:.1f} MB")
