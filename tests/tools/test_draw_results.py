"""Pictures of image, ground truth and prediction."""

import draw_results
import numpy as np
from detectron2.data import Metadata

from spatialflow.data import Categories

CATEGORIES = Categories.from_json(
    [
        {"id": 1, "name": "disk", "isthing": 1, "color": [255, 0, 0]},
        {"id": 2, "name": "grass", "isthing": 0, "color": [0, 255, 0]},
    ]
)


def test_segments_are_drawn_and_void_is_left_alone():
    image = np.full((100, 120, 3), 128, np.uint8)
    panoptic = np.zeros((100, 120), np.int32)
    panoptic[:50] = 7
    segments = [{"id": 7, "isthing": False, "category_id": 1, "area": 6000}]
    metadata = Metadata(**CATEGORIES.as_metadata())
    drawn = draw_results.draw_panoptic(image, panoptic, segments, metadata)
    assert drawn.shape == (400, 480, 3)  # four times as high, so that labels can be read
    assert (drawn[300:] == 128).mean() > 0.99
    top = drawn[20:100, 20:200].reshape(-1, 3).mean(0)
    assert top[1] > 150 > 100 > top[0]  # green, by the category's colour


def test_panels_stand_side_by_side_below_their_titles():
    panels = {"a": np.zeros((10, 20, 3), np.uint8), "b": np.full((10, 30, 3), 9, np.uint8)}
    picture = draw_results.side_by_side(panels)
    assert picture.shape == (42, 56, 3)
    assert (picture[32:, :20] == 0).all() and (picture[32:, 26:] == 9).all()
