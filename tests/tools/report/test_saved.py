"""Reading a saved evaluation, whole and damaged."""

import json
import shutil

import pytest
from saved_run import EVIL, NAME

from spatialflow.tools.report import read_saved


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
    with pytest.raises(FileNotFoundError, match=r"absent not found; give the run's OUTPUT_DIR"):
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
        (lambda c: c.update(annotations=[]), "nothing was evaluated"),
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


@pytest.mark.parametrize("metrics", [3, {"AP": "high"}])
def test_results_of_another_kind(own_results, metrics):
    edit(own_results / "results.json", lambda c: c["report_test_own"].update(bbox=metrics))
    with pytest.raises(ValueError, match=r"results.json: '(bbox|AP)' cannot be"):
        read_saved(str(own_results))


def test_cityscapes_images_are_not_where_the_json_says(own_results):
    home = own_results / "inference" / "report_test_own"
    ids = ["aachen_000000_000019", "ulm_000001_000019"]

    def rename(content):
        for i, image_id in enumerate(ids):
            content["annotations"][i]["image_id"] = image_id
            if "images" in content:
                content["images"][i]["id"] = image_id

    edit(home / "panoptic_predictions.json", rename)
    edit(own_results.parent / "data" / "panoptic.json", rename)
    edit(home / "dataset.json", lambda c: c.update(name="cityscapes_fine_panoptic_val"))
    files = [image.file_name for image in read_saved(str(own_results)).images]
    assert files[0].endswith("images/aachen/aachen_000000_000019_leftImg8bit.png")
    assert files[1].endswith("images/ulm/ulm_000001_000019_leftImg8bit.png")


def test_ground_truth_has_moved(own_results):
    shutil.rmtree(own_results.parent / "data")
    with pytest.raises(FileNotFoundError, match=r"panoptic.json not found"):
        read_saved(str(own_results))
