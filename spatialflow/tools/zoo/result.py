"""A config's result, and the splits that results are of."""

from __future__ import annotations

from typing import NamedTuple

Metrics = tuple[float, ...]
"""PQ, PQ of things, PQ of stuff; of a detector without segmentation box AP, AP50, AP75; of one with
masks alone box AP, mask AP."""


class Result(NamedTuple):
    """Numbers of one config on one split.

    Attributes:
        config: its name, see :func:`spatialflow.model_zoo.config_names`.
        split: the split that the numbers belong to.
        published: None where there is no number.
        sources: "table: row" of the journal paper, "Report table: row" of the challenge report,
            "JSIS-Net table: row" of that paper.
        note: what is needed for the numbers besides the config.

    What this project measured stands in ``measured.json``.
    """

    config: str
    split: str
    published: Metrics | None = None
    sources: tuple[str, ...] = ()
    note: str = ""


COCO_VAL, COCO_TEST, CITYSCAPES_VAL = "COCO val2017", "COCO test-dev", "Cityscapes val"
VISTAS_VAL = "Mapillary Vistas val"
MULTI_SCALE = "multi-scale testing"
