"""Pictures of image, ground truth and prediction."""

import numpy as np
import pytest
from detectron2.data import Metadata
from tiny_runs import CONFIG, tiny_overrides

from spatialflow.cli import run_command
from spatialflow.data import Categories
from spatialflow.inference import predictor
from spatialflow.tools import draw

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
    drawn = draw.draw_panoptic(image, panoptic, segments, metadata)
    assert drawn.shape == (400, 480, 3)  # four times as high, so that labels can be read
    assert (drawn[300:] == 128).mean() > 0.99
    top = drawn[20:100, 20:200].reshape(-1, 3).mean(0)
    assert top[1] > 150 > 100 > top[0]  # green, by the category's colour


def test_pictures_of_large_images_are_reduced(monkeypatch):
    monkeypatch.setattr(predictor, "MAX_DRAWN_PIXELS", 500 * 600)
    nothing = np.zeros((1000, 1200), np.int32)
    image = np.full((1000, 1200, 3), 128, np.uint8)
    drawn = draw.draw_panoptic(image, nothing, [], Metadata(**CATEGORIES.as_metadata()))
    assert drawn.shape == (500, 600, 3)


@pytest.mark.parametrize("folder", ["val", "panoptic_val"])
def test_pictures_are_written_over_no_file_of_the_dataset(
    monkeypatch, toy_datasets, tmp_path, folder
):
    before = {p: p.read_bytes() for p in toy_datasets.rglob("*.*")}
    monkeypatch.setattr(draw.Predictor, "__init__", None)  # nothing may be built
    config = ["--config-file", str(CONFIG), "--output", str(toy_datasets / "toy" / folder)]
    arguments = [*config, "--opts", *tiny_overrides(toy_datasets, tmp_path)]
    with pytest.raises(SystemExit, match="error: .*would be written over the input"):
        run_command("draw", arguments)
    assert {p: p.read_bytes() for p in toy_datasets.rglob("*.*")} == before


def test_panels_stand_side_by_side_below_their_titles():
    panels = {"a": np.zeros((10, 20, 3), np.uint8), "b": np.full((10, 30, 3), 9, np.uint8)}
    picture = draw.side_by_side(panels)
    assert picture.shape == (42, 56, 3)
    assert (picture[32:, :20] == 0).all() and (picture[32:, 26:] == 9).all()
