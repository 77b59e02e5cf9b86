"""Which location belongs to which thing."""

import pytest
import torch

from spatialflow.modeling.spinet.targets import ImageTargets, assign_locations, sample_locations

GRIDS, STRIDES = [(8, 8), (4, 4), (2, 2)], [8, 16, 32]


def image(*boxes, classes=None, ignored=None):
    masks = torch.zeros(len(boxes), 64, 64, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    void = torch.zeros(64, 64, dtype=torch.bool) if ignored is None else ignored
    classes = torch.tensor(classes or range(len(boxes)), dtype=torch.int64)
    return ImageTargets(masks, classes, torch.zeros(64, 64, dtype=torch.int64), void)


def test_a_location_has_the_mask_over_it_and_the_smaller_of_two():
    found = assign_locations(
        image((0, 0, 32, 32), (0, 0, 16, 8), classes=[4, 2]), GRIDS, STRIDES, 5
    )
    first = found.labels[:64].view(8, 8)
    assert (first[0, :2] == 2).all() and (first[1:4, :4] == 4).all() and (first[4:] == 5).all()
    assert found.labels[-4:].tolist() == [4, 5, 5, 5]
    assert found.things[-4:].tolist() == [0, -1, -1, -1]


def test_void_is_ignored_where_no_thing_is():
    void = torch.zeros(64, 64, dtype=torch.bool)
    void[:, 16:] = True
    found = assign_locations(image((0, 0, 24, 24), ignored=void), GRIDS, STRIDES, 5)
    assert found.labels[:8].tolist() == [0, 0, 0, -1, -1, -1, -1, -1]


def test_a_thing_that_vanishes_has_the_location_at_its_centre():
    found = assign_locations(image((17, 33, 18, 34), (63, 63, 64, 64)), GRIDS, STRIDES, 5)
    assert (found.things != -1).nonzero()[:, 0].tolist() == [4 * 8 + 2, 63]


def test_level_ranges():
    scene = image((0, 0, 64, 64), (0, 0, 16, 16))
    ranges = [(1, 20), (10, 32), (32, 2048)]
    found = assign_locations(scene, GRIDS, STRIDES, 5, ranges).things.split([64, 16, 4])
    assert [set(x.tolist()) - {-1} for x in found] == [{1}, {1}, {0}]


def test_an_image_without_things_is_background():
    found = assign_locations(image(), GRIDS, STRIDES, 5)
    assert (found.labels == 5).all() and len(sample_locations(found, 64)) == 0


@pytest.mark.parametrize("count", [4, 100])
def test_samples_are_foreground_locations_without_repetition(count):
    torch.manual_seed(0)
    found = assign_locations(image((0, 0, 32, 32)), GRIDS, STRIDES, 5)
    sampled = sample_locations(found, count)
    assert len(sampled) == len(set(sampled.tolist())) == min(count, 21)
    assert (found.things[sampled] == 0).all()
