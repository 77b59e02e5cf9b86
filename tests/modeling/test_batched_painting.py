"""The painting of all instances at once, as on CUDA, gives the maps of the loops, bit by bit."""

from functools import partial

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spatialflow.modeling import batched_painting, mask_head, painting
from spatialflow.modeling.mask_head import paste_in_parts, paste_masks

THRESHOLDS = [0.0, 0.25, 0.37, 0.5, 1.0]
SIDE = st.integers(0, 9)

mask_stacks = st.tuples(st.integers(0, 20), st.integers(1, 6), st.integers(1, 7)).flatmap(
    lambda shape: hnp.arrays(bool, shape)
)


def rectangles(corners, size=(7, 8)):
    """(N, H, W) bool from x, y, x, y; some are empty."""
    ys, xs = np.mgrid[: size[0], : size[1]]
    masks = [(xs >= a) & (xs < c) & (ys >= b) & (ys < d) for a, b, c, d in corners]
    return np.array(masks, bool).reshape(-1, *size)


def assert_same_painting(masks, overlap_thresh):
    """Of all at once and one by one; returns the map."""
    keeps = partial(painting._overlaps_little, overlap_thresh=overlap_thresh)
    expected = painting._paint_one_by_one(masks, keeps)
    found = batched_painting.paint_instances(masks, keeps)
    assert found.dtype == expected.dtype == torch.int32
    assert torch.equal(found, expected)
    return found


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    mask_stacks | st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE), max_size=20).map(rectangles),
    st.sampled_from(THRESHOLDS),
)
def test_instances(masks, overlap_thresh):
    assert_same_painting(torch.from_numpy(masks), overlap_thresh)


@pytest.mark.parametrize("overlap_thresh", [0.0, 0.25, 0.4999, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 17, 40])
def test_chain_in_which_each_decision_hangs_on_the_one_before(count, overlap_thresh):
    """Each shares half of its pixels with the one before: below 0.5 every other one is kept."""
    masks = torch.zeros(count, 2, count + 1, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[:, i : i + 2] = True
    panoptic = assert_same_painting(masks, overlap_thresh)
    kept = panoptic.unique()
    step = 1 if overlap_thresh >= 0.5 else 2
    assert kept[kept > 0].tolist() == list(range(1, count + 1, step))


def test_identical_covered_and_empty_masks():
    masks = torch.zeros(6, 3, 4, dtype=torch.bool)
    masks[1, :, :2] = masks[2, :, :2] = masks[4] = masks[5] = True
    for overlap_thresh in THRESHOLDS:
        assert_same_painting(masks, overlap_thresh)
        assert_same_painting(masks[:1], overlap_thresh)
        assert_same_painting(masks.transpose(1, 2), overlap_thresh)


def test_rounds_do_not_grow_with_instances_that_are_apart():
    rounds = []

    def keeps(free, area):
        rounds.append(len(free))
        return painting._overlaps_little(free, area, 0.5)

    masks = torch.eye(30, dtype=torch.bool)[:, None]
    batched_painting.paint_instances(masks, keeps)
    assert rounds == [30]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    hnp.arrays(np.int32, (6, 7), elements=st.integers(0, 2)),
    st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE), max_size=12),
    st.sampled_from([0.0, 0.5, 0.6, 1.0]),
)
def test_boxes(panoptic, corners, min_free):
    """Also turned round, without area, and beyond the map."""
    sides = torch.tensor(corners, dtype=torch.int64).reshape(-1, 4)
    expected = torch.from_numpy(panoptic)
    free = expected == 0
    found = expected.clone()
    keeps = partial(painting._has_enough, min_free=min_free)
    painting._fill_one_by_one(expected, sides, keeps)
    found += batched_painting.fill_boxes(free, sides, keeps)
    assert torch.equal(found, expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 40), st.integers(0, 2**20), st.sampled_from([0.0, 0.2, 0.35, 0.5, 0.9]))
def test_most_probable(count, seed, min_prob):
    """Probabilities of few values, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(5, (count, 4, 4), generator=generator) / 4
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([19.0, 17.0])
    corners[::5] = corners[::5].floor()
    boxes = corners.sort(dim=1).values.flatten(1)
    masks[1::2], boxes[1::2] = masks[: count // 2 * 2 : 2], boxes[: count // 2 * 2 : 2]  # twins
    arguments = (masks, boxes, (17, 19), min_prob)
    expected = painting._most_probable_one_by_one(*arguments)
    assert torch.equal(batched_painting.paint_most_probable(*arguments), expected)


def test_most_probable_of_a_box_without_area():
    arguments = (torch.ones(2, 4, 4), torch.tensor([[3.0, 3, 3, 6], [0, 0, 5, 5]]), (8, 8), 0.5)
    expected = painting._most_probable_one_by_one(*arguments)
    assert torch.equal(batched_painting.paint_most_probable(*arguments), expected)


@pytest.mark.parametrize("count", [0, 1, 16, 37])
def test_masks_are_pasted_in_parts(count, monkeypatch):
    sizes = []

    class Counted(mask_head.ROIMasks):
        def to_bitmasks(self, *args, **kwargs):
            sizes.append(len(self))
            return super().to_bitmasks(*args, **kwargs)

    monkeypatch.setattr(mask_head, "ROIMasks", Counted)
    probabilities = torch.rand(count, 28, 28)
    corners = (torch.rand(count, 2, 2) * torch.tensor([19.0, 17.0])).sort(dim=1).values
    found = Instances((17, 19), pred_boxes=Boxes(corners.flatten(1)))
    expected = paste_masks(probabilities, found)
    sizes.clear()
    in_parts = paste_in_parts(probabilities, found.pred_boxes, found.image_size)
    assert in_parts.dtype == torch.bool and torch.equal(in_parts, expected)
    assert sum(sizes) == count and max(sizes, default=0) <= batched_painting.AT_A_TIME


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_paints_what_the_loops_paint():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(40, 50, 60, generator=generator) < 0.05
    probabilities = torch.rand(40, 28, 28, generator=generator)
    corners = torch.rand(40, 2, 2, generator=generator) * torch.tensor([60.0, 50.0])
    boxes = corners.sort(dim=1).values.flatten(1)
    painted = painting.paint_instances(masks, 0.37)
    on_cuda = painting.paint_instances(masks.cuda(), 0.37)
    assert torch.equal(on_cuda.cpu(), painted)
    painting.fill_boxes(painted, boxes, 0.6)
    painting.fill_boxes(on_cuda, boxes.cuda(), 0.6)
    assert torch.equal(on_cuda.cpu(), painted)
    arguments = (probabilities.cuda(), boxes.cuda(), (50, 60), 0.35)
    expected = painting._most_probable_one_by_one(*arguments)
    assert torch.equal(painting.paint_most_probable(*arguments), expected)
