"""``dataset.json``."""

import json

import pytest
from panoptic_scenes import two_images, write_panoptic

from spatialflow.saved.dataset import DATASET_JSON, SavedDataset


@pytest.mark.parametrize(
    "files",
    [
        {"panoptic_root": "png", "panoptic_json": "panoptic.json"},
        {"images_json": "panoptic.json"},
    ],
)
def test_it_is_read_as_it_was_written_with_absolute_paths(tmp_path, monkeypatch, files):
    monkeypatch.chdir(tmp_path)
    write_panoptic(tmp_path, two_images())
    SavedDataset("mine", "images", **files).save(".")
    dataset = SavedDataset.open(DATASET_JSON)
    absolute = {key: str(tmp_path / path) for key, path in files.items()}
    assert dataset == SavedDataset("mine", str(tmp_path / "images"), **absolute)
    assert [image["file_name"] for image in dataset.images().values()] == [
        "scene0.jpg",
        "scene1.jpg",
    ]
    if "images_json" in files:
        with pytest.raises(ValueError, match="Dataset mine has no ground truth"):
            dataset.truth  # noqa: B018
    else:
        assert (dataset.truth.json, dataset.truth.root) == (
            absolute["panoptic_json"],
            absolute["panoptic_root"],
        )


def test_it_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"TEST\.SAVE_PREDICTIONS True first"):
        SavedDataset.open(str(tmp_path / DATASET_JSON))


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"name": "a", "image_root": "b"},
        {"name": "a", "image_root": "b", "panoptic_root": "c"},
        {"name": "a", "image_root": "b", "images_json": 3},
        {"name": 1, "image_root": "b", "images_json": "c"},
    ],
)
def test_it_is_none(tmp_path, content):
    (tmp_path / DATASET_JSON).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"dataset\.json does not describe a dataset by name"):
        SavedDataset.open(str(tmp_path / DATASET_JSON))
