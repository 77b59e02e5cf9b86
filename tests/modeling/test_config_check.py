"""Configs that SpatialFlow is not built from."""

from __future__ import annotations

import re

import pytest
from builders import STUFF_LABELS, THINGS
from detectron2.modeling import build_model

from spatialflow.config import config_dir, load_config
from spatialflow.modeling import SpatialFlow
from spatialflow.modeling.config_check import check_config

COUNTS = SpatialFlow.class_counts

BASE = str(config_dir() / "Base-Small.yaml")
COUNTS = {"MODEL.RETINANET.NUM_CLASSES": THINGS, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": STUFF_LABELS}


def config(*opts, counts=COUNTS):
    return load_config(BASE, [*(x for item in counts.items() for x in item), *opts])


@pytest.mark.parametrize("forgotten", COUNTS)
def test_class_counts_that_were_forgotten_are_named(forgotten):
    counts = {key: count for key, count in COUNTS.items() if key != forgotten}
    with pytest.raises(ValueError, match=rf"{re.escape(forgotten)} is not set.*prepare_datasets"):
        build_model(config(counts=counts))


def test_stuff_need_not_be_counted_without_its_branch():
    counts = {"MODEL.RETINANET.NUM_CLASSES": THINGS}
    assert build_model(config("MODEL.SPATIALFLOW.STUFF_ON", False, counts=counts))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("MODEL.RETINANET.NUM_CONVS", 2, r"2, .*NUM_STAGES.* Leave the key at 4\."),
        ("MODEL.RETINANET.IN_FEATURES", ["p4", "p5"], r"\['p4', 'p5'\], .*P3 to P7"),
        ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True, "True, .*each class has a mask"),
        ("MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "'PointRendMaskHead', .*its layers"),
        ("MODEL.SEM_SEG_HEAD.NAME", "PointRendSemSegHead", "'PointRendSemSegHead', .*one of these"),
        (
            "MODEL.SEM_SEG_HEAD.IN_FEATURES",
            ["p2", "p3"],
            r"\['p2', 'p3'\], .*SEGMENTATION_FEATURES",
        ),
    ],
)
def test_keys_that_are_not_read_are_refused(key, value, named):
    with pytest.raises(ValueError, match=f"{re.escape(key)} is {named}"):
        build_model(config(key, value))


def test_values_in_use_are_not_refused():
    check_config(config("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p3", "p4", "p5"]), COUNTS)
    check_config(config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.7), COUNTS)
