#!/usr/bin/env python
"""PQ of exported models beside that of the model itself, on DATASETS.TEST of a config.

    python tools/score_exported.py --config camvid/spatialflow_lite0.yaml 32.onnx 8.onnx 16.xml

The weights are those that come with the project; bfloat16 is left out on a processor that would
emulate it. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from detectron2.data import DatasetCatalog
from spatialflow_runtime import PanopticModel

from spatialflow import model_zoo
from spatialflow.data import prepare_datasets
from spatialflow.data.mapper import read_image
from spatialflow.evaluation import PanopticEvaluator, PanopticGroundTruth
from spatialflow.inference.predictor import Predictor
from spatialflow.tools.benchmark.measure import computes_bfloat16
from spatialflow.utils.text import table

Result = tuple[Any, list[dict]]


def subjects(
    predictor: Predictor, files: list[Path]
) -> Iterator[tuple[str, float, Callable[[Any], Result]]]:
    """Name, megabytes, and what makes a map and segments of a BGR picture."""
    yield "PyTorch, float32", 0.0, lambda image: predictor.panoptic(image)["panoptic_seg"]
    for file in files:
        size = sum(f.stat().st_size for f in file.parent.glob(f"{file.stem}.*") if f != file)
        size = file.stat().st_size + (size if file.suffix == ".xml" else 0)
        for precision in ("float32", *["bfloat16"] * computes_bfloat16("cpu")):
            model = PanopticModel(file, engine="openvino", precision=precision)

            def run(image: Any, model: PanopticModel = model) -> Result:
                ids, segments = model(image[:, :, ::-1])["panoptic_seg"]
                return torch.from_numpy(ids), segments

            yield f"{file.name}, OpenVINO {precision}", size / 1e6, run


def main() -> None:
    """Evaluate all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="a config whose weights come with it")
    parser.add_argument("--limit", type=int, help="only the first images")
    parser.add_argument("files", nargs="+", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    cfg = model_zoo.get_config(args.config, trained=True)
    prepare_datasets(cfg, ("TEST",))
    name = cfg.DATASETS.TEST[0]
    truth, images = PanopticGroundTruth(name), DatasetCatalog.get(name)[: args.limit]
    rows = []
    for subject, megabytes, run in subjects(Predictor(cfg), args.files):
        evaluator = PanopticEvaluator(truth)
        for image in images:
            output = {"panoptic_seg": run(read_image(image["file_name"], "BGR"))}
            evaluator.process([image], [output])
        pq = evaluator.evaluate()["panoptic_seg"]
        shown = [f"{pq[key]:.2f}" for key in ("PQ", "PQ_th", "PQ_st")]
        rows.append([subject, f"{megabytes:.1f}" if megabytes else "", *shown])
        print(*rows[-1], flush=True)
    print(table(rows, ["model", "MB", "PQ", "PQ, things", "PQ, stuff"], left=1))


if __name__ == "__main__":
    main()
