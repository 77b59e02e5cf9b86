"""Exported models beside their originals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from spatialflow_runtime.resize import resize

from spatialflow.config import load_config
from spatialflow.data import Categories
from spatialflow.export.metadata import resize_rule
from spatialflow.export.write import Options, Traced, trace_model, write
from spatialflow.model_zoo import get_config_file
from spatialflow.modeling.panoptic_model import PanopticModel

CATEGORIES = Categories.from_json(
    [{"id": i, "name": f"thing {i}", "isthing": 1} for i in range(3)]
    + [{"id": i, "name": f"stuff {i}", "isthing": 0} for i in range(3, 7)]
)
"""Of :func:`builders.tiny_model` and :mod:`small_rcnn`."""


def toy_config():
    """The config of images as the toy scenes have them."""
    return load_config(get_config_file("toy/spatialflow_toy.yaml"))


def traced(model: PanopticModel, stop="panoptic") -> Traced:
    """A small model, traced."""
    return trace_model(model.eval(), toy_config(), CATEGORIES, stop)


def exported(model: PanopticModel, path: Path, **options) -> Path:
    """A small model in a file."""
    chosen = Options(**options)
    write(traced(model, chosen.stop), path, chosen)
    return path


@torch.no_grad()
def eager(model: PanopticModel, image: np.ndarray, cfg=None) -> dict:
    """The output of the model itself for an RGB picture (H, W, 3) uint8."""
    cfg = cfg or toy_config()
    resized = resize(image, resize_rule(cfg))
    if cfg.INPUT.FORMAT == "BGR":
        resized = resized[:, :, ::-1]
    tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    height, width = image.shape[:2]
    return model([{"image": tensor, "height": height, "width": width}])[0]


def agreement(one, other) -> float:
    """The share of pixels that are equal in two panoptic results, segments matched by class."""
    (ids, segments), (other_ids, other_segments) = one, other
    pairs = Counter(zip(np.ravel(ids).tolist(), np.ravel(other_ids).tolist(), strict=True))
    class_of, other_class_of = (
        {0: None} | {s["id"]: (s["isthing"], s["category_id"]) for s in of}
        for of in (segments, other_segments)
    )
    best: Counter = Counter()
    for (a, b), count in pairs.items():
        if class_of[a] == other_class_of[b]:
            best[a] = max(best[a], count)
    return sum(best.values()) / np.size(ids)


def noise(size, seed=0) -> np.ndarray:
    """A smooth RGB picture (H, W, 3) uint8."""
    coarse = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(seed)) * 255
    picture = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0]
    return picture.permute(1, 2, 0).to(torch.uint8).numpy()
