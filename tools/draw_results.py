#!/usr/bin/env python
"""Pictures of image, ground truth and prediction side by side, for images of a dataset.

python tools/draw_results.py --config-file C --output DIR [--dataset NAME] [--num-images 8] \
    [--opts MODEL.WEIGHTS W ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import Visualizer
from tqdm import tqdm

from spatialflow import Predictor
from spatialflow.config import load_config
from spatialflow.data import load_dataset_dicts, prepare_datasets
from spatialflow.data.targets import read_panoptic_png

MIN_HEIGHT = 400
"""Smaller images are enlarged before drawing, so that the labels can be read."""


def draw_panoptic(
    image: np.ndarray, panoptic: np.ndarray, segments: list[dict[str, Any]], metadata: Metadata
) -> np.ndarray:
    """The segments drawn over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        panoptic: (H, W) segment ids, 0 for void.
        segments: with ``id``, ``isthing`` and ``category_id``, the thing class or stuff label.
        metadata: names and colours of classes and labels.

    Returns:
        RGB uint8, enlarged by a whole number where the image is low.
    """
    scale = max(1, -(-MIN_HEIGHT // image.shape[0]))
    size = (image.shape[1] * scale, image.shape[0] * scale)
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    panoptic = cv2.resize(panoptic.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
    drawn = Visualizer(image, metadata).draw_panoptic_seg(torch.from_numpy(panoptic), segments)
    return drawn.get_image()


def side_by_side(panels: dict[str, np.ndarray]) -> np.ndarray:
    """RGB panels of one height next to each other, each below its title."""
    titled = []
    for title, panel in panels.items():
        bar = np.full((32, panel.shape[1], 3), 255, np.uint8)
        cv2.putText(bar, title, (8, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 1, cv2.LINE_AA)
        titled += [np.vstack([bar, panel]), np.full((len(panel) + 32, 6, 3), 255, np.uint8)]
    return np.hstack(titled[:-1])


def draw_results(predictor: Predictor, dataset: str, output: Path, num_images: int) -> None:
    """Write one picture for each of the first images of a dataset into a folder."""
    metadata = predictor.metadata
    output.mkdir(parents=True, exist_ok=True)
    for entry in tqdm(load_dataset_dicts(dataset)[:num_images], desc=f"Drawing {dataset}"):
        image = read_image(entry["file_name"], "BGR")
        panoptic, segments = predictor(image)["panoptic_seg"]
        rgb = np.ascontiguousarray(image[:, :, ::-1])
        truth = read_panoptic_png(entry["pan_seg_file_name"])
        nothing = np.zeros_like(truth)
        panels = {
            "image": draw_panoptic(rgb, nothing, [], metadata),
            "ground truth": draw_panoptic(rgb, truth, entry["segments_info"], metadata),
            "prediction": draw_panoptic(rgb, panoptic.cpu().numpy(), segments, metadata),
        }
        path = output / f"{Path(entry['file_name']).stem}.png"
        cv2.imwrite(str(path), side_by_side(panels)[:, :, ::-1])


def main() -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", required=True, type=Path, help="folder of the pictures")
    parser.add_argument("--dataset", help="default: the first of DATASETS.TEST")
    parser.add_argument("--num-images", type=int, default=8)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    args = parser.parse_args()
    cfg = load_config(args.config_file, args.opts)
    if args.dataset:
        cfg.DATASETS.TEST = (args.dataset,)
    prepare_datasets(cfg, splits=["TEST"])
    draw_results(Predictor(cfg), cfg.DATASETS.TEST[0], args.output, args.num_images)
    print(f"Pictures are in {args.output}")


if __name__ == "__main__":
    main()
