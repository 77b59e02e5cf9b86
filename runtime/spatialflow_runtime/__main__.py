"""``spatialflow-runtime MODEL PICTURE ... --output FOLDER``: panoptic pictures, PNGs and JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .draw import coded_ids, draw
from .model import PanopticModel
from .sessions import PRECISIONS


def parser() -> argparse.ArgumentParser:
    """A model, pictures, and where to write."""
    parser = argparse.ArgumentParser(prog="spatialflow-runtime", description=__doc__)
    parser.add_argument("model", type=Path, help="an .onnx file, or .xml of OpenVINO")
    parser.add_argument("images", nargs="+", type=Path, help="pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--engine", choices=("onnxruntime", "openvino"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="another threshold of the merge, such as score_thresh 0.5",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 1 after an error, which takes one line."""
    args = parser().parse_args(argv)
    try:
        settings = {name: float(value) for name, value in args.set}
        model = PanopticModel(
            args.model,
            engine=args.engine,
            threads=args.threads,
            precision=args.precision,
            settings=settings,
        )
        if model.metadata.stop != "panoptic":
            raise ValueError(f"{args.model} makes no panoptic maps; export it without --stop.")
        args.output.mkdir(parents=True, exist_ok=True)
        for path in args.images:
            segment(model, path, args.output)
    except (OSError, ValueError, TypeError, ModuleNotFoundError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def segment(model: PanopticModel, path: Path, folder: Path) -> None:
    """Write NAME_panoptic.png (drawn), NAME_ids.png (COCO's coding) and NAME_segments.json."""
    with Image.open(path) as opened:
        image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    output = model(image)
    target = folder / path.stem
    draw(model, image, output).save(f"{target}_panoptic.png")
    Image.fromarray(coded_ids(output["panoptic_seg"][0])).save(f"{target}_ids.png")
    Path(f"{target}_segments.json").write_text(json.dumps(model.segments(output), indent=2))


if __name__ == "__main__":
    sys.exit(main())
