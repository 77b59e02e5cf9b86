"""Class activation maps of the cls and stuff heads, models side by side (Fig. 5).

A class activation map weighs the channels of the last feature by what they count for a class in the
layer that follows: it is that layer's answer for the class, without the bias, where it is positive.

    spatialflow heatmap --input street.jpg --output maps.png \
        --model "with flows" CONFIG WEIGHTS --model "without flows" CONFIG WEIGHTS
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import cv2
import numpy as np

from spatialflow.config import load_config
from spatialflow.data.mapper import read_image
from spatialflow.inference.predictor import Predictor
from spatialflow.modeling.class_activation import class_activations
from spatialflow.paths import refuse_overwriting
from spatialflow.utils.command_parser import CommandParser, add_import_argument
from spatialflow.utils.files import write_image

OPACITY = 0.5
"""Of a heat map over its picture."""


def heat_map(image: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """An activation laid over its picture, blue for none and red for the greatest.

    Args:
        image: (H, W, 3) uint8 BGR.
        activation: (H, W), 0 or more; all 0 is all blue.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    greatest = max(float(activation.max()), float(np.finfo(np.float32).tiny))
    scaled = (255 * activation / greatest).astype(np.uint8)
    colors = cv2.applyColorMap(scaled, cv2.COLORMAP_JET)
    return cv2.addWeighted(image, 1 - OPACITY, colors, OPACITY, 0)


def compare(
    image: np.ndarray,
    predictors: dict[str, Predictor],
    thing: str | None = None,
    stuff: str | None = None,
) -> np.ndarray:
    """The figure: a row for each model with the picture, its cls map and its stuff map.

    Args:
        image: (H, W, 3) uint8 BGR.
        predictors: models of the same classes by title.
        thing, stuff: names of the classes to show; default: those that the first model answers
            most strongly to.

    Returns:
        uint8 BGR.

    Raises:
        ValueError: a class that the models do not have.
    """
    first, *_ = predictors.values()
    names = [
        [c.name for c in first.categories.things],
        [c.name for c in first.categories.stuff],
    ]
    chosen: list[int | None] = [
        None if wanted is None else _index(names_i, wanted)
        for names_i, wanted in zip(names, (thing, stuff), strict=True)
    ]
    rows = []
    for title, predictor in predictors.items():
        size = (image.shape[0], image.shape[1])
        maps = class_activations(predictor.model, predictor.model_input(image), size)
        panels = [_titled(image, title)]
        for i, kind in enumerate(("cls", "stuff")):
            activations = getattr(maps, kind)
            if activations is None:
                continue
            shown = chosen[i]
            if shown is None:
                shown = chosen[i] = int(activations.mean(dim=(1, 2)).argmax())
            heat = heat_map(image, activations[shown].cpu().numpy())
            panels.append(_titled(heat, f"{kind}: {names[i][shown]}"))
        rows.append(np.hstack(panels))
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0))) for r in rows])


def _index(names: Sequence[str], wanted: str) -> int:
    if wanted not in names:
        raise ValueError(f"There is no class {wanted!r}; the model has {', '.join(names)}.")
    return names.index(wanted)


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    bar = np.full((28, image.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([bar, image])


EXAMPLES = """
%(prog)s --input street.jpg --output maps.png --model "with flows" A.yaml A.pth \\
  --model "without flows" B.yaml B.pth --thing car
"""


def parser() -> CommandParser:
    """A picture, the models, and the classes."""
    parser = CommandParser(
        prog="spatialflow heatmap",
        examples=EXAMPLES,
        description="Class activation maps of the cls and stuff heads, models side by side "
        "(Fig. 5).",
    )
    add_import_argument(parser)
    parser.add_argument("--input", required=True, help="a picture")
    parser.add_argument("--output", required=True, help="the figure to write, a PNG")
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        nargs=3,
        metavar=("TITLE", "CONFIG", "WEIGHTS"),
        help="a row of the figure; give it once for each model",
    )
    parser.add_argument("--thing", help="class of the cls map")
    parser.add_argument("--stuff", help="class of the stuff map")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the figure."""
    files = [file for _, *config_and_weights in args.model for file in config_and_weights]
    refuse_overwriting([args.output], [args.input, *files])
    image = np.ascontiguousarray(read_image(args.input, "BGR"))
    models = {title: Predictor(load_config(c, args.opts), w) for title, c, w in args.model}
    write_image(args.output, compare(image, models, args.thing, args.stuff))
    print(f"Class activation maps are in {args.output}")
