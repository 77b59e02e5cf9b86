"""The filters of things: windows, the convolution, coordinates."""

import pytest
import torch
import torch.nn.functional as F

from spatialflow.modeling.spinet.coordinates import with_coordinates
from spatialflow.modeling.spinet.filter_sampling import (
    FilterSampling,
    single_shot_convolution,
    windows_at,
)


@pytest.mark.parametrize("side", [1, 3, 5])
def test_windows_are_those_of_unfold_borders_included(side):
    levels = [torch.randn(4, 5, 7), torch.randn(4, 3, 4), torch.randn(4, 1, 1)]
    unfolded = torch.cat([F.unfold(x[None], side, padding=side // 2)[0].T for x in levels])
    torch.testing.assert_close(windows_at(levels, torch.arange(48), side), unfolded)
    some = torch.tensor([47, 0, 35, 6, 6, 20])
    torch.testing.assert_close(windows_at(levels, some, side), unfolded[some])
    assert windows_at(levels, some[:0], side).shape == (0, 4 * side * side)


def test_single_shot_convolution_is_a_convolution_for_each_filter():
    feature, filters = torch.randn(6, 9, 11), torch.randn(5, 6, 3, 3)
    together = single_shot_convolution(feature, filters)
    for logits, weight in zip(together, filters, strict=True):
        alone = F.conv2d(feature[None], weight[None], padding=1)[0, 0]
        torch.testing.assert_close(logits, alone)
    assert single_shot_convolution(feature, filters[:0]).shape == (0, 9, 11)
    batch = single_shot_convolution(torch.stack([feature, feature]), filters)
    torch.testing.assert_close(batch, torch.stack([together, together]))


def test_gradients_of_windows_go_to_the_cells_they_have():
    levels = [torch.randn(2, 4, 5, requires_grad=True), torch.randn(2, 2, 2, requires_grad=True)]
    windows_at(levels, torch.tensor([0, 0, 23]), 3).sum().backward()
    expected = torch.zeros(4, 5)
    expected[:2, :2] = 2
    assert torch.equal(levels[0].grad[0], expected)
    assert torch.equal(levels[1].grad[1], torch.ones(2, 2))


def test_coordinates_are_those_of_the_image_and_not_of_its_padding():
    feature = torch.randn(2, 3, 4, 6)
    located = with_coordinates(feature, 8, [(32, 48), (16, 24)])
    assert torch.equal(located[:, :3], feature)
    x, y = located[0, 3], located[0, 4]
    torch.testing.assert_close(x[0], torch.linspace(-5 / 6, 5 / 6, 6))
    torch.testing.assert_close(y[:, 0], torch.linspace(-3 / 4, 3 / 4, 4))
    alone = with_coordinates(feature[1:, :, :2, :3], 8, [(16, 24)])
    assert torch.equal(located[1:, :, :2, :3], alone)


def test_the_class_head_does_not_see_coordinates_and_the_filter_head_does():
    torch.manual_seed(0)
    heads = FilterSampling(
        32, 3, strides=[8], filter_channels=8, feature_channels=16, num_convs=1, prior_prob=0.2
    )
    level = torch.randn(1, 32, 4, 4)
    small, large = heads([level], [(32, 32)]), heads([level], [(64, 64)])
    assert torch.equal(small.logits[0], large.logits[0])
    assert not torch.equal(small.filters[0], large.filters[0])
    assert heads.sample([small.filters[0][0]], torch.tensor([3, 5])).shape == (2, 16, 3, 3)
    assert 0.15 < small.logits[0].sigmoid().mean() < 0.25
