"""Answers to a request: JSON with run-length masks, a PNG of ids, or the drawn picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from spatialflow.data.categories import Categories
from spatialflow.data.run_lengths import encode_masks
from spatialflow.data.segments import segments_as_json
from spatialflow.data.targets import rgb_of_ids
from spatialflow.visualization import draw_panoptic, drawn_segments

from ..predictors import PanopticOutput


class Answer(NamedTuple):
    """A body and its media type."""

    media_type: str
    body: bytes


def as_json(image: np.ndarray, output: PanopticOutput, categories: Categories) -> Answer:
    """The segments with their masks.

    ``width``, ``height``, and ``segments``: see :func:`spatialflow.data.segments.segments_as_json`;
    each has ``color``, RGB as it is drawn, and ``segmentation``, COCO's run lengths.
    """
    ids, segments = output
    masks = encode_masks(ids)
    drawn = drawn_segments(segments, categories)
    described: list[dict[str, Any]] = [
        {**s, "color": look.color, "segmentation": masks[s["id"]]}
        for s, look in zip(segments_as_json(ids, segments, categories), drawn, strict=True)
    ]
    height, width = ids.shape
    content = {"width": width, "height": height, "segments": described}
    return Answer("application/json", json.dumps(content, separators=(",", ":")).encode())


def as_ids(image: np.ndarray, output: PanopticOutput, categories: Categories) -> Answer:
    """The map of ids in COCO's coding: id = R + 256 G + 65536 B."""
    return _png(rgb_of_ids(output[0])[:, :, ::-1])


def as_drawn(image: np.ndarray, output: PanopticOutput, categories: Categories) -> Answer:
    """The picture with its segments and their names."""
    ids, segments = output
    return _png(draw_panoptic(image, ids, drawn_segments(segments, categories)))


OUTPUTS: dict[str, Callable[[np.ndarray, PanopticOutput, Categories], Answer]] = {
    "json": as_json,
    "ids": as_ids,
    "drawn": as_drawn,
}
"""By the value of the parameter ``output``."""


def _png(pixels: np.ndarray) -> Answer:
    _, png = cv2.imencode(".png", pixels)
    return Answer("image/png", png.tobytes())
