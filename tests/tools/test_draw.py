"""Pictures of image, ground truth and prediction."""

import numpy as np
import pytest
from tiny_runs import CONFIG, tiny_overrides

from spatialflow.cli import run_command
from spatialflow.data import Categories
from spatialflow.tools import draw

CATEGORIES = Categories.from_json(
    [
        {"id": 1, "name": "disk", "isthing": 1, "color": [255, 0, 0]},
        {"id": 2, "name": "grass", "isthing": 0, "color": [0, 255, 0]},
    ]
)


def test_low_images_are_enlarged_with_their_segments():
    image = np.full((100, 120, 3), 128, np.uint8)
    ids = np.zeros((100, 120), np.int32)
    ids[:50] = 7
    segments = [{"id": 7, "isthing": False, "category_id": 1, "area": 6000}]
    drawn = draw.draw_enlarged(image, ids, segments, CATEGORIES)
    assert drawn.shape == (400, 480, 3)  # four times as high, so that names can be read
    assert (drawn[201:] == 128).all()
    assert (drawn[:199] != 128).any(axis=2).all()


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
