"""Panoptic predictions on disk: what was written is read, and all tools refuse the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from saved_run import NAME, save_evaluation

from spatialflow.data.targets import read_panoptic_png
from spatialflow.evaluation.scoring import score_folder
from spatialflow.saved.dataset import DATASET_JSON, SavedDataset
from spatialflow.saved.predictions import (
    PREDICTIONS_JSON,
    PanopticFolder,
    check_segments,
    read_pairs,
    read_predictions_json,
    write_prediction,
    write_predictions_json,
)
from spatialflow.tools.explain import explain
from spatialflow.tools.report import read_saved
from spatialflow.tools.submission import pack_panoptic


@pytest.fixture
def evaluated(tmp_path):
    """The folder of a saved evaluation."""
    return save_evaluation(tmp_path) / "inference" / NAME


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _first(content):
    return content["annotations"][0]


def _segment(content):
    return _first(content)["segments_info"][0]


DAMAGES = {
    "no annotations": (lambda c: c.pop("annotations"), "it needs a list 'annotations'"),
    "annotations of another kind": (lambda c: c.update(annotations=3), "needs a list 'annotations"),
    "no object": (lambda c: c["annotations"].append("x"), "an annotation has no 'image_id': x"),
    "no segments": (lambda c: _first(c).pop("segments_info"), "has no 'segments_info'"),
    "segments of another kind": (lambda c: _first(c).update(segments_info=1), "cannot be 1"),
    "image id of another kind": (lambda c: _first(c).update(image_id=[]), r"'image_id' cannot be"),
    "image twice": (lambda c: c["annotations"].append(_first(c)), "predicted more than once"),
    "name outside": (lambda c: _first(c).update(file_name="../x.png"), "'../x.png' is not below"),
    "segment without id": (lambda c: _segment(c).pop("id"), "image 0: a segment has no id"),
    "id too large": (lambda c: _segment(c).update(id=2**24), "image 0: a segment has no id"),
    "category": (lambda c: _segment(c).update(category_id=77), "has category id 77; those of"),
    "category of another kind": (
        lambda c: _segment(c).update(category_id=[]),
        "category id .",
    ),
    "score": (lambda c: _segment(c).update(score="x"), "has a score that is no number: 'x'"),
}


def tools(folder):
    """What each tool does with the folder of an evaluation."""
    predictions = PanopticFolder.of_evaluation(str(folder))
    truth = SavedDataset.open(str(folder / DATASET_JSON)).truth
    return {
        "score": lambda: score_folder(predictions, truth),
        "explain": lambda: explain(predictions, truth),
        "report": lambda: read_saved(str(folder.parent.parent)),
        "submission": lambda: pack_panoptic(str(folder), "x", str(folder / "x.zip")),
    }


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_tool_refuses_the_same_with_the_same_words(evaluated, damage):
    change, message = DAMAGES[damage]
    edit(evaluated / PREDICTIONS_JSON, change)
    said = {}
    for tool, run in tools(evaluated).items():
        with pytest.raises(ValueError, match=rf"{PREDICTIONS_JSON}.*{message}") as e:
            run()
        said[tool] = str(e.value)
    assert len(set(said.values())) == 1
    assert not (evaluated / "x.zip").exists()


@pytest.mark.parametrize("damage", ["segments of another kind", "id too large", "category"])
def test_the_ground_truth_is_checked_like_the_predictions(evaluated, damage):
    change, message = DAMAGES[damage]
    truth = SavedDataset.open(str(evaluated / DATASET_JSON)).truth
    edit(Path(truth.json), change)
    for tool, run in tools(evaluated).items():
        if tool != "submission":  # it reads no segments of the ground truth
            with pytest.raises(ValueError, match=rf"panoptic.json.*{message}"):
                run()


def test_pairs(evaluated):
    folder = PanopticFolder.of_evaluation(str(evaluated))
    truth = SavedDataset.open(str(evaluated / DATASET_JSON)).truth
    pairs = read_pairs(folder, truth)
    assert (pairs.missing, pairs.extra) == ([], [])
    assert [p.png for p in pairs.pairs] == [f"{folder.root}/scene{i}.png" for i in (0, 1)]
    assert [p.truth_png for p in pairs.pairs] == [f"{truth.root}/scene{i}.png" for i in (0, 1)]
    edit(Path(folder.json), lambda c: c["annotations"][0].update(image_id=7))
    pairs = read_pairs(folder, truth)
    assert (pairs.missing, pairs.extra) == ([0], [7])
    assert pairs.pairs[0].predicted is pairs.pairs[0].png is None


def test_what_is_written_is_read(tmp_path):
    id_map = np.array([[0, 1], [70000, 2**24 - 1]], np.int32)
    segments = [
        {"id": 1, "category_id": 7, "isthing": True, "score": 0.5, "instance_id": 3},
        {"id": 70000, "category_id": 8, "isthing": False, "area": 1},
        {"id": 2**24 - 1, "category_id": 8, "isthing": False},
    ]
    entry = write_prediction(str(tmp_path), "a", "city/a.png", id_map, segments)
    write_predictions_json(str(tmp_path), [{"id": 7}, {"id": 8}], [entry])
    folder = PanopticFolder.of_evaluation(str(tmp_path))
    content = read_predictions_json(folder.json)
    assert content["categories"] == [{"id": 7}, {"id": 8}]
    (read,) = content["annotations"]
    check_segments(folder.json, read, {7, 8})
    assert read["image_id"] == "a"
    del segments[0]["instance_id"]
    assert read["segments_info"] == segments
    assert (read_panoptic_png(folder.png(read)) == id_map).all()


def test_folder_of_pngs_that_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Folder .*with the PNGs of .*\.json not found"):
        PanopticFolder.of_evaluation(str(tmp_path))
