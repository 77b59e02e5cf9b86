"""Exported models in the benchmark: the same weights, the same picture, run by other engines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from spatialflow_runtime import PanopticModel

from spatialflow.data import Categories
from spatialflow.export.write import Options, trace_model, write

from .subjects import STUFF_LABELS, THINGS, BenchmarkModel

KINDS = {
    "onnxruntime": ("onnxruntime", "float32"),
    "OpenVINO": ("openvino", "float32"),
    "OpenVINO, bf16": ("openvino", "bfloat16"),
}
"""Engine and precision of a row."""
EIGHT_BITS = "OpenVINO, 8 bits"
CATEGORIES = Categories.from_json(
    [
        {"id": i, "name": str(i), "isthing": int(i < THINGS)}
        for i in range(THINGS + STUFF_LABELS - 1)
    ]
)


def exported_calls(
    name: str, measured: BenchmarkModel, image: dict, folder: Path
) -> dict[str, Callable[[], Any]]:
    """What runs the exported model on a picture, by the name of its row.

    The ranges of the 8 bits are those of this very picture.

    Args:
        name: name of the model.
        measured: the model, calibrated for the picture.
        image: the model's input.
        folder: folder for the files.
    """
    cfg = measured.cfg.clone()
    cfg.INPUT.MIN_SIZE_TEST = 0  # the picture has its size already
    pixels = image["image"].permute(1, 2, 0).numpy()
    if cfg.INPUT.FORMAT == "BGR":
        pixels = pixels[:, :, ::-1]
    pixels = np.ascontiguousarray(pixels)
    picture, path, small = (folder / file for file in ("picture.png", "32.onnx", "8.onnx"))
    Image.fromarray(pixels).save(picture)
    traced = trace_model(measured.panoptic_model, cfg, CATEGORIES)
    write(traced, path, Options())
    write(traced, small, Options(calibration=[picture]))
    threads = torch.get_num_threads()
    models = {
        kind: PanopticModel(path, engine=engine, precision=precision, threads=threads)
        for kind, (engine, precision) in KINDS.items()
    }
    models[EIGHT_BITS] = PanopticModel(small, threads=threads, engine="openvino")
    return {f"{name}, {kind}": partial(model, pixels) for kind, model in models.items()}
