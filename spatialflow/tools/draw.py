"""Pictures of image, ground truth and prediction side by side, for images of a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from spatialflow.config import load_config
from spatialflow.data import Categories, load_dataset_dicts, prepare_datasets
from spatialflow.data.mapper import read_image
from spatialflow.data.targets import read_panoptic_png
from spatialflow.errors import UsageError
from spatialflow.inference.predictor import Predictor
from spatialflow.paths import refuse_overwriting
from spatialflow.utils.command_parser import CommandParser, add_import_argument
from spatialflow.utils.files import write_image
from spatialflow.visualization import draw_panoptic, drawn_segments

MIN_HEIGHT = 400
"""Smaller images are enlarged before drawing, so that the labels can be read."""


def enlarge(pixels: np.ndarray, interpolation: int) -> np.ndarray:
    """An image or map (H, W, ...), by a whole number so that it has :data:`MIN_HEIGHT`."""
    scale = max(1, -(-MIN_HEIGHT // len(pixels)))
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=interpolation)


def draw_enlarged(
    image: np.ndarray, ids: np.ndarray, segments: Sequence[dict[str, Any]], categories: Categories
) -> np.ndarray:
    """The segments drawn over an image that is enlarged first, if it is low.

    Args:
        image: (H, W, 3) uint8 BGR.
        ids: (H, W) segment ids, 0 for void.
        segments: see :func:`spatialflow.visualization.drawn_segments`.
        categories: the classes.

    Returns:
        BGR uint8.
    """
    large = enlarge(image, cv2.INTER_CUBIC)
    large_ids = enlarge(ids.astype(np.int32, copy=False), cv2.INTER_NEAREST)
    return draw_panoptic(large, large_ids, drawn_segments(segments, categories))


def side_by_side(panels: dict[str, np.ndarray]) -> np.ndarray:
    """BGR panels of one height next to each other, each below its title."""
    titled = []
    for title, panel in panels.items():
        bar = np.full((32, panel.shape[1], 3), 255, np.uint8)
        cv2.putText(bar, title, (8, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 1, cv2.LINE_AA)
        titled += [np.vstack([bar, panel]), np.full((len(panel) + 32, 6, 3), 255, np.uint8)]
    return np.hstack(titled[:-1])


def path_of_picture(entry: dict[str, Any], output: Path) -> Path:
    """Where the picture of a dataset dict is written."""
    return output / f"{Path(entry['file_name']).stem}.png"


def entries_to_draw(dataset: str, output: Path, num_images: int) -> list[dict[str, Any]]:
    """The first images of a dataset.

    Raises:
        FileNotFoundError, ValueError: the dataset cannot be loaded, or the pictures would be
            written over its images or PNGs.
    """
    entries = load_dataset_dicts(dataset)
    files = [entry[key] for entry in entries for key in ("file_name", "pan_seg_file_name")]
    refuse_overwriting([path_of_picture(entry, output) for entry in entries[:num_images]], files)
    return entries[:num_images]


def draw_results(predictor: Predictor, entries: list[dict[str, Any]], output: Path) -> None:
    """Write one picture for each dataset dict into a folder."""
    categories = predictor.categories
    output.mkdir(parents=True, exist_ok=True)
    for entry in tqdm(entries, desc="Drawing"):
        image = np.ascontiguousarray(read_image(entry["file_name"], "BGR"))
        panoptic, segments = predictor.panoptic(image)["panoptic_seg"]
        truth = read_panoptic_png(entry["pan_seg_file_name"])
        panels = {
            "image": enlarge(image, cv2.INTER_CUBIC),
            "ground truth": draw_enlarged(image, truth, entry["segments_info"], categories),
            "prediction": draw_enlarged(image, panoptic.cpu().numpy(), segments, categories),
        }
        path = path_of_picture(entry, output)
        write_image(str(path), side_by_side(panels))


EXAMPLES = """
%(prog)s --config-file configs/toy/spatialflow_toy.yaml --output pictures --num-images 4 \\
  --opts MODEL.WEIGHTS output/toy/model_final.pth
"""


def parser() -> CommandParser:
    """A config, a dataset, and where to write."""
    parser = CommandParser(
        prog="spatialflow draw",
        examples=EXAMPLES,
        description="Image, ground truth and prediction side by side, for images of a dataset.",
    )
    add_import_argument(parser)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", required=True, type=Path, help="folder of the pictures")
    parser.add_argument("--dataset", help="default: the first of DATASETS.TEST")
    parser.add_argument("--num-images", type=int, default=8)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def run(args: argparse.Namespace) -> None:
    """Draw."""
    cfg = load_config(args.config_file, args.opts)
    if args.dataset:
        cfg.DATASETS.TEST = (args.dataset,)
    if not cfg.DATASETS.TEST:
        raise UsageError("DATASETS.TEST of the config is empty: name a dataset with --dataset.")
    prepare_datasets(cfg, splits=["TEST"])
    entries = entries_to_draw(cfg.DATASETS.TEST[0], args.output, args.num_images)
    draw_results(Predictor(cfg), entries, args.output)
    print(f"Pictures are in {args.output}")
