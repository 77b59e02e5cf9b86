"""Anchors that fit the boxes of a dataset."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialflow.data.register import PanopticFiles
from spatialflow.tools.check import check_dataset
from spatialflow.tools.check.anchors import fit_anchors


def test_upright_flat_and_square_boxes_each_get_a_ratio():
    upright, square, flat = [(10, 40)] * 3, [(20, 20)] * 3, [(40, 10)] * 3
    fit = fit_anchors([*upright, *square, *flat])
    assert fit.aspect_ratios == (0.25, 1.0, 4.0)
    assert fit.sides == (20.0, 20.0, 20.0)
    assert fit.covered == 1.0
    # An anchor of ratio 2 and as much area has 14x28 of a 10x40 box: IoU 0.55; but from 32 up.
    assert fit.covered_by_coco < 1


def test_boxes_of_one_shape_need_one_ratio():
    assert fit_anchors([(30, 15)] * 7).aspect_ratios == (0.5,)


@pytest.mark.parametrize(("side", "first"), [(20, 16), (40, 32), (9, 8), (100, 64)])
def test_sizes_start_where_the_boxes_do(side, first):
    fit = fit_anchors([(side * 2**i, side * 2**i) for i in range(3)])
    assert fit.covered == 1.0
    assert fit.sizes[0][0] <= side * 2**0.5 and len(fit.sizes) == 5
    assert fit.sizes[0][0] >= first


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=30))
def test_any_boxes_have_anchors(sides):
    fit = fit_anchors(sides)
    assert fit.boxes == len(sides) and 0 <= fit.covered <= 1
    assert 1 <= len(fit.aspect_ratios) <= 3 and all(x > 0 for x in fit.aspect_ratios)


def test_without_things_there_is_nothing_to_fit():
    assert fit_anchors([]) is None


def test_the_report_of_a_dataset_says_its_anchors(folder):
    report = check_dataset(PanopticFiles(*folder.paths))
    assert report.anchors.boxes > 0
    assert "Anchors that fit: MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS [[" in report.as_text()


def test_one_anchor_a_cell_is_the_first_size_of_each_level():
    text = str(fit_anchors([(32, 32)] * 5))
    assert text.endswith("ASPECT_RATIOS [[1.0]] and SIZES [[32], [64], [128], [256], [512]].")
