"""Reading a saved evaluation, whole and damaged."""

import json
import shutil

import pytest
from saved_run import EVIL, NAME

from spatialflow.report import read_saved


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_everything_is_read(results):
    saved = read_saved(str(results))
    assert (saved.name, saved.annotated, len(saved.images)) == (NAME, 2, 2)
    assert [c.name for c in saved.categories] == ["cat", "dog", EVIL, "sky"]
    assert saved.results["bbox"]["AP"] == 12.5
    assert saved.weights == "output/<model>.pth"
    assert saved.environment == "PyTorch 2.15.0"  # of the last run in the log
    first = saved.images[0]
    assert first.file_name.endswith("images/scene0.jpg")
    assert [s["category_id"] for s in first.segments] == [0, 9, 3, 4, 4]
    assert [s["id"] for s in first.truth_segments] == [1000, 70000, 1, 2, 3]


def test_only_the_predictions_are_needed(own_results):
    for name in ("results.json", "config.yaml", "log.txt"):
        (own_results / name).unlink()
    saved = read_saved(str(own_results))
    assert (saved.results, saved.config, saved.weights, saved.environment) == ({}, None, None, None)


@pytest.mark.parametrize("config", ["- 1", "MODEL: [", "MODEL:\n  WEIGHTS: ''", "!!python/name:os"])
def test_config_without_weights(own_results, config):
    (own_results / "config.yaml").write_text(config)
    saved = read_saved(str(own_results))
    assert (saved.config, saved.weights) == (config, None)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent is not there; give the run's OUTPUT_DIR"):
        read_saved(str(tmp_path / "absent"))


def test_no_predictions__says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--eval-only and TEST.SAVE_PREDICTIONS True"):
        read_saved(str(tmp_path))


def test_several_datasets(own_results):
    inference = own_results / "inference"
    shutil.copytree(inference / "report_test_own", inference / "second")
    with pytest.raises(ValueError, match=r"--dataset: \['report_test_own', 'second'\]"):
        read_saved(str(own_results))
    assert read_saved(str(own_results), "second").images[0].png.count("/second/") == 1
    with pytest.raises(FileNotFoundError, match="no saved predictions of third"):
        read_saved(str(own_results), "third")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), "there is no 'annotations'"),
        (lambda c: c.update(annotations=[]), "nothing was evaluated"),
        (lambda c: c["annotations"][0].pop("segments_info"), "there is no 'segments_info'"),
        (lambda c: c["annotations"][0]["segments_info"][0].pop("id"), "there is no 'id'"),
        (lambda c: c["annotations"][0].update(image_id=7), "image 7, which .*panoptic.json does"),
    ],
)
def test_damaged_predictions(own_results, change, message):
    path = own_results / "inference" / "report_test_own" / "panoptic_predictions.json"
    edit(path, change)
    with pytest.raises(ValueError, match=rf"panoptic_predictions.json.*{message}"):
        read_saved(str(own_results))


def test_no_json(own_results):
    (own_results / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results.json is not valid JSON"):
        read_saved(str(own_results))
    (own_results / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"results.json holds a list"):
        read_saved(str(own_results))


def test_ground_truth_has_moved(own_results):
    shutil.rmtree(own_results.parent / "data")
    with pytest.raises(FileNotFoundError, match=r"panoptic.json is not there"):
        read_saved(str(own_results))
