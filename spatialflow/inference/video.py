"""From a frame to what the tracker needs of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.structures import Instances

from spatialflow.errors import UserError
from spatialflow.tracking import Candidate, FramePrediction

from .predictor import Predictor

_LOW_SHARE = 0.3
"""Instances of at least this share of the merge's score threshold may carry on a track."""


def predict_frame(predictor: Predictor, image: np.ndarray) -> FramePrediction:
    """The panoptic map of a frame, and the instances whose scores are too low for it.

    Args:
        predictor: a model that makes panoptic maps.
        image: (H, W, 3) uint8 in BGR order.

    Raises:
        UserError: the model makes none.
    """
    output: dict[str, Any] = predictor(image)
    if "panoptic_seg" not in output:
        raise UserError(
            "Objects are followed in panoptic maps, and this config's model makes none: set "
            "MODEL.PANOPTIC_FPN.COMBINE.ENABLED True."
        )
    panoptic_map, segments = output["panoptic_seg"]
    high = predictor.cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH
    candidates = _candidates(output.get("instances"), _LOW_SHARE * high, high)
    return FramePrediction(panoptic_map.cpu().numpy(), segments, candidates)


def _candidates(instances: Instances | None, low: float, high: float) -> list[Candidate]:
    if instances is None or not instances.has("pred_masks"):
        return []
    chosen = instances[(instances.scores >= low) & (instances.scores < high)].to("cpu")
    return [
        Candidate(mask.numpy(), int(category_id), float(score))
        for mask, category_id, score in zip(
            chosen.pred_masks, chosen.pred_classes, chosen.scores, strict=True
        )
    ]
