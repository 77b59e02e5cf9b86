"""Segments over a picture."""

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialflow.data import Categories
from spatialflow.visualization import DrawnSegment, draw_panoptic, drawn_segments
from spatialflow.visualization import draw as module

CATEGORIES = Categories.from_json(
    [
        {"id": 1, "name": "disk", "isthing": 1, "color": [200, 60, 50]},
        {"id": 5, "name": "ring", "isthing": 1, "color": [190, 70, 190]},
        {"id": 11, "name": "grass", "isthing": 0, "color": [70, 130, 70]},
    ]
)
RED = DrawnSegment(3, (255, 0, 0))


def scene(height, width, number=6):
    rng = np.random.default_rng(height)
    ids = np.zeros((height, width), np.int32)
    for i in range(number):
        y, x = rng.integers(0, height), rng.integers(0, width)
        cv2.circle(ids, (int(x), int(y)), max(3, height // 6), i + 1, -1)
    return rng.integers(0, 256, (height, width, 3), np.uint8), ids


def naive(image, ids, segments, opacity):
    """Every pixel by itself."""
    drawn = image.copy()
    height, width = ids.shape
    colors = {s.id: np.array(s.color[::-1]) for s in segments}
    for y in range(height):
        for x in range(width):
            value = ids[y, x]
            right = ids[y, x + 1] if x + 1 < width else value
            below = ids[y + 1, x] if y + 1 < height else value
            if right != value or below != value:
                drawn[y, x] = 255
            elif value in colors:
                drawn[y, x] = np.rint(colors[value] * opacity + image[y, x] * (1 - opacity))
    return drawn


@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 9), st.integers(1, 600))
def test_every_pixel_has_the_colour_of_its_segment(height, width, number, stripe):
    image, ids = scene(height, width, number)
    segments = [DrawnSegment(i, (20 * i, 255 - 20 * i, 99)) for i in range(1, number, 2)]
    whole = module._STRIPE
    try:
        module._STRIPE = stripe  # borders between stripes are drawn, too
        drawn = draw_panoptic(image, ids, segments, opacity=0.5, labels=False)
    finally:
        module._STRIPE = whole
    expected = naive(image, ids, segments, 0.5)
    assert np.abs(drawn.astype(int) - expected).max() <= 1  # OpenCV rounds halves otherwise


def test_the_hole_of_a_ring_is_not_painted():
    image, ids = np.full((60, 60, 3), 50, np.uint8), np.zeros((60, 60), np.int32)
    cv2.circle(ids, (30, 30), 20, 3, 8)
    drawn = draw_panoptic(image, ids, [RED])
    assert (drawn[28:33, 28:33] == 50).all()
    assert (drawn[30, 10] == [22, 22, 163]).all()


def test_nothing_of_what_is_given_changes():
    image, ids = scene(50, 70)
    before = image.copy(), ids.copy()
    drawn = draw_panoptic(image, ids, [RED])
    assert drawn is not image
    assert (image == before[0]).all() and (ids == before[1]).all()


def test_views_and_large_ids_are_drawn():
    image, ids = scene(50, 70)
    ids[ids == 3] = 2**24 - 1
    red = RED._replace(id=2**24 - 1)
    expected = draw_panoptic(image, ids, [red], labels=False)
    assert (expected[ids == 2**24 - 1] != image[ids == 2**24 - 1]).any()
    mirrored = draw_panoptic(image[:, ::-1], ids[:, ::-1], [red], labels=False)
    inner = expected[:, ::-1] == mirrored  # the line is on the other side of the border
    assert inner.all(axis=2).mean() > 0.8


def test_borders_of_large_pictures_are_thicker():
    ids = np.zeros((100, 3600), np.int32)
    ids[:, 1800:] = 3
    drawn = draw_panoptic(np.zeros((100, 3600, 3), np.uint8), ids, [RED], labels=False)
    assert (drawn == 255).all(axis=2).sum(axis=1).tolist() == [3] * 100


def test_sizes_must_be_equal():
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(4, 6\)"):
        draw_panoptic(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 6), np.int32), [])


@pytest.mark.parametrize("height, width", [(1, 1), (1, 3000), (3000, 1), (12, 9)])
def test_pictures_of_any_shape_are_drawn(height, width):
    ids = np.full((height, width), 3, np.int32)
    image = np.zeros((height, width, 3), np.uint8)
    drawn = draw_panoptic(image, ids, [RED._replace(label="a long name")])
    assert drawn.shape == image.shape and (drawn == [0, 0, 140]).all()  # no room for the name


def test_no_more_memory_than_the_result_and_some_stripes():
    image, ids = np.zeros((3000, 4000, 3), np.uint8), np.zeros((3000, 4000), np.int32)
    ids[500:2500, 500:3500] = 3
    tracemalloc.start()
    draw_panoptic(image, ids, [RED._replace(label="red")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.nbytes + 16 * 2**20


def test_names_are_written_on_the_segments_that_have_room():
    image, ids = np.zeros((400, 600, 3), np.uint8), np.zeros((400, 600), np.int32)
    ids[50:350, 50:300], ids[10:14, 400:404] = 3, 4
    plain = draw_panoptic(image, ids, [RED, RED._replace(id=4)])
    named = draw_panoptic(
        image, ids, [RED._replace(label="large"), DrawnSegment(4, RED.color, "s")]
    )
    rows, columns = np.nonzero((plain != named).any(axis=2))
    assert 150 < rows.mean() < 250 and 125 < columns.mean() < 225
    assert columns.max() < 300


def test_names_do_not_lie_over_each_other():
    image, ids = np.zeros((60, 60, 3), np.uint8), np.ones((60, 60), np.int32)
    ids[:, 30:] = 2
    both = [DrawnSegment(i, (9, 9, 9), "long name") for i in (1, 2)]
    drawn = draw_panoptic(image, ids, both)
    first = draw_panoptic(image, ids, [both[0], both[1]._replace(label="")])
    assert (drawn == first).all()


def test_how_segments_of_a_model_and_of_a_dataset_are_drawn():
    segments = [
        {"id": 1, "isthing": True, "category_id": 1, "score": 0.956},
        {"id": 2, "isthing": True, "category_id": 1, "track_id": 8},
        {"id": 9, "isthing": False, "category_id": 1, "area": 7},
    ]
    first, second, grass = drawn_segments(segments, CATEGORIES)
    assert first == (1, (190, 70, 190), "ring 96%")
    assert second.label == "ring" and second.color != first.color
    assert grass == (9, (70, 130, 70), "grass")
