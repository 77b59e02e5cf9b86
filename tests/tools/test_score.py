"""Scoring predictions on disk: equality with panopticapi, what is refused, the command."""

import csv
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from panoptic_scenes import CATEGORIES, random_image, segment, write_panoptic, write_results
from panopticapi.evaluation import pq_compute

from spatialflow.cli import run_command
from spatialflow.data import Categories
from spatialflow.evaluation.scoring import score_folder
from spatialflow.saved.dataset import SavedDataset
from spatialflow.saved.predictions import PanopticFolder

main = partial(run_command, "score")


@pytest.fixture(scope="module")
def random_folders(tmp_path_factory):
    """Ground truth and predictions of 24 random images; read only."""
    return write_folders(tmp_path_factory.mktemp("random"), 24)


def write_folders(folder, number, seed=3):
    rng = np.random.default_rng(seed)
    images = [random_image(rng) for _ in range(number)]
    _, png, path = write_panoptic(folder, [image[2:] for image in images])
    results = write_results(folder, {i: image[:2] for i, image in enumerate(images)})
    return PanopticFolder(str(results)), PanopticFolder(path, png)


@pytest.fixture
def folders(tmp_path):
    """Four images, to be damaged."""
    return write_folders(tmp_path, 4)


def edit(path, change):
    with open(path) as f:
        content = json.load(f)
    change(content)
    with open(path, "w") as f:
        json.dump(content, f)


def arguments(predictions, truth):
    return [predictions.json, "--json", truth.json, "--panoptic", truth.root]


def assert_equals_panopticapi(counted, predictions, truth):
    theirs = pq_compute(truth.json, predictions.json, truth.root, predictions.root)
    ours = counted.counts.results()
    for group in ("All", "Things", "Stuff"):
        assert ours[group] == pytest.approx(theirs[group], abs=1e-9)
    for i, qualities in theirs["per_class"].items():
        found = {k: ours["per_class"][i][k] for k in qualities}
        assert found == pytest.approx(qualities, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_equals_panopticapi(tmp_path, seed):
    predictions, truth = write_folders(tmp_path, 12, seed)
    counted = score_folder(predictions, truth)
    assert 0.1 < counted.counts.results()["All"]["pq"] < 0.9
    assert_equals_panopticapi(counted, predictions, truth)


def test_several_processes_give_the_same_counts(random_folders):
    one, three = (score_folder(*random_folders, workers=n) for n in (1, 3))
    assert (one.counts.table == three.counts.table).all()
    assert len(one.images) == len(three.images) == 24


def test_areas_of_the_json_change_nothing_but_are_reported(folders, caplog):
    before = score_folder(*folders).counts.table
    assert not caplog.records

    def shrink(content):
        for annotation in content["annotations"]:
            for s in annotation["segments_info"]:
                s["area"] /= 10

    edit(folders[1].json, shrink)
    assert (score_folder(*folders).counts.table == before).all()
    assert "areas in the JSON differ" in caplog.text


def test_missing_images_are_all_missed_and_extra_ones_left_out(folders, caplog):
    whole = score_folder(*folders)

    def move(content):
        content["annotations"][1]["image_id"] = "elsewhere"

    edit(folders[0].json, move)
    counted = score_folder(*folders)
    assert (counted.missing, counted.extra) == ([1], ["elsewhere"])
    assert "no prediction for 1 image (1)" in caplog.text
    assert "predictions for 1 image ('elsewhere')" in caplog.text
    with open(folders[1].json) as f:
        segments = json.load(f)["annotations"][1]["segments_info"]
    expected = whole.counts.table.copy()
    expected[whole.images[1].rows] -= whole.images[1].values
    row = {c["id"]: i for i, c in enumerate(CATEGORIES)}
    for s in segments:
        expected[row[s["category_id"]], 3] += not s["iscrowd"]
    np.testing.assert_allclose(counted.counts.table, expected, atol=1e-12)


def unknown_category(content):
    content["annotations"][2]["segments_info"][0].update(id=7, category_id=77)


def repeated_image(content):
    content["annotations"].append(content["annotations"][0])


def absent_file(content):
    content["annotations"][3]["file_name"] = "gone.png"


def id_too_large(content):
    content["annotations"][2]["segments_info"][0]["id"] = 2**24


def name_outside_the_folder(content):
    content["annotations"][2]["file_name"] = "../predicted/p2.png"


def unlisted_segment(content):
    content["annotations"][2]["segments_info"].pop()


@pytest.mark.parametrize(
    "side, damage, message",
    [
        (0, unknown_category, r"predicted\.json, image 2: segment 7 has category id 77; those"),
        (1, unknown_category, r"panoptic\.json, image 2: segment 7 has category id 77; those"),
        (0, name_outside_the_folder, r"predicted\.json: file name '\.\./predicted/p2\.png' is not"),
        (1, name_outside_the_folder, r"panoptic\.json, 'annotations': file name '\.\./predicted/p"),
        (0, repeated_image, r"predicted\.json: image 0 is predicted more than once"),
        (0, absent_file, r"gone\.png not found"),
        (0, id_too_large, r"predicted\.json, image 2: a segment has no id from 1 to"),
        (0, unlisted_segment, r"Image 2, prediction .*p2\.png.*: the map of the prediction has id"),
        (1, unlisted_segment, r"Image 2, .*scene2\.png: the map of the ground truth has ids"),
        (0, lambda c: c.pop("annotations"), r"predicted\.json holds no panoptic results"),
        (0, lambda c: c["annotations"][0].pop("file_name"), "an annotation has no 'file_name'"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_results_that_cannot_be_scored(folders, side, damage, message, workers):
    edit(folders[side].json, damage)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        score_folder(*folders, workers=workers)


@pytest.mark.parametrize("content", [b"", b"no PNG at all", None])
def test_damaged_png_is_named(folders, tmp_path, content):
    path = tmp_path / "predicted" / "p1.png"
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    with pytest.raises(ValueError, match=r"p1\.png is (damaged|no PNG)"):
        score_folder(*folders)


def test_prediction_of_another_size(folders, tmp_path):
    truth = tmp_path / "png"
    (truth / "scene0.png").write_bytes((truth / "scene1.png").read_bytes())
    wide = np.ones((5, 90), dtype=int)
    (tmp_path / "other").mkdir()
    write_results(tmp_path / "other", {0: (wide, [segment(1, 0)])})
    (tmp_path / "predicted" / "p0.png").write_bytes(
        (tmp_path / "other" / "predicted" / "p0.png").read_bytes()
    )
    with pytest.raises(ValueError, match=r"Image 0, .*p0\.png.* the prediction is 90x5"):
        score_folder(*folders)


def test_categories_may_be_those_of_a_registration(folders):
    names = [{**c, "name": c["name"].upper()} for c in CATEGORIES]
    counted = score_folder(*folders, categories=Categories.from_json(names))
    assert "PQ-GRASS" in counted.counts.metrics()


def test_command_writes_table_json_and_csv(random_folders, tmp_path, capsys):
    out = {kind: str(tmp_path / f"out.{kind}") for kind in ("json", "csv")}
    status = main(
        [*arguments(*random_folders), "--per-class", "--bootstrap", "50", "--workers", "1"]
        + ["--json-out", out["json"], "--csv-out", out["csv"]]
    )
    assert status == 0
    printed = capsys.readouterr().out
    assert "panoptic, 24 images" in printed and "50 bootstrap replicates" in printed
    counted = score_folder(*random_folders).counts
    with open(out["json"]) as f:
        (result,) = [r for name, r in json.load(f).items() if name == "panoptic"]
    assert result["panoptic_seg"] == pytest.approx(counted.metrics())
    for c in result["per_class"]:
        assert counted.results()["per_class"][c["id"]]["tp"] == c["tp"]
        assert f"| {c['tp']} |" in printed.replace("  ", " ").replace("  ", " ")
    with open(out["csv"], newline="") as f:
        rows = {r["metric"]: r for r in csv.DictReader(f)}
    assert float(rows["PQ"]["value"]) == result["panoptic_seg"]["PQ"]
    low, high = (float(rows["PQ"][k]) for k in ("low", "high"))
    assert [low, high] == result["intervals"]["PQ"]
    assert low < result["panoptic_seg"]["PQ"] < high
    assert rows["PQ-cat"]["low"] == ""


def test_command_takes_a_saved_evaluation(random_folders, tmp_path, capsys):
    predictions, truth = random_folders
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "panoptic_predictions").symlink_to(predictions.root)
    (saved / "panoptic_predictions.json").symlink_to(predictions.json)
    SavedDataset("mine", str(tmp_path), truth.root, truth.json).save(str(saved))
    assert main([str(saved), "--workers", "1"]) == 0
    assert "mine, 24 images" in capsys.readouterr().out
    assert main([predictions.json, "--dataset", str(saved / "dataset.json")]) == 0
    assert "mine, 24 images" in capsys.readouterr().out


def test_command_takes_a_registered_name(toy_datasets, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_datasets))
    toy = toy_datasets / "toy"
    arguments = [str(toy / "panoptic_val.json"), "--dataset", "toy_panoptic_val", "--workers", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "toy_panoptic_val, 3 images" in printed and "100.00" in printed


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a[:1], "Which ground truth"),
        (lambda a: [a[0], "--dataset", a[2]], "does not describe a dataset"),
        (lambda a: ["nowhere.json", *a[1:]], "nowhere"),
        (lambda a: [*a[:3], "--panoptic", "nowhere"], "Folder nowhere"),
        (lambda a: [a[0], "--dataset", "unheard_of"], "unheard_of is not registered"),
    ],
)
def test_mistakes_end_in_one_message(random_folders, change, message):
    with pytest.raises(SystemExit, match=message) as stop:
        main(change(arguments(*random_folders)))
    assert stop.value.code.startswith("error: ")


def test_two_ground_truths_are_wrong_usage(random_folders, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*arguments(*random_folders), "--dataset", "x"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: Give --json or --dataset, not both.\n"


def test_scoring_files_loads_neither_torch_nor_detectron2():
    code = "import sys, spatialflow.tools.score; print({'torch', 'detectron2'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
