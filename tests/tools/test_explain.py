"""Where PQ is lost: cases with known answers."""

import json
import math
from functools import partial

import cv2
import numpy as np
import pytest
from panoptic_scenes import CATEGORIES, segment, write_panoptic
from panopticapi.utils import id2rgb
from raw_scenes import evaluate_noisy

from spatialflow.cli import run_command
from spatialflow.saved.predictions import PanopticFolder
from spatialflow.saved.raw_outputs import RawOutputs
from spatialflow.tools.explain import MISTAKES, as_text, best_merge, explain

main = partial(run_command, "explain")

GRASS, CAT, DOG, SKY = (c["id"] for c in CATEGORIES)
THINGS = frozenset((CAT, DOG))


def scene():
    """10x10: grass on the left; on the right a cat of 25 pixels above 25 of sky."""
    ids = np.full((10, 10), 7)
    ids[:5, 5:], ids[5:, 5:] = 1, 9
    return ids, [segment(7, GRASS), segment(1, CAT), segment(9, SKY)]


@pytest.fixture
def save(tmp_path):
    """Function that writes predictions of one scene; returns them with their ground truth."""

    def write(predicted, segments, truth=None):
        _, root, path = write_panoptic(tmp_path, [truth or scene()])
        cv2.imwrite(str(tmp_path / "scene0.png"), id2rgb(predicted)[..., ::-1])
        annotation = {"image_id": 0, "file_name": "scene0.png", "segments_info": segments}
        results = tmp_path / "predictions.json"
        results.write_text(json.dumps({"annotations": [annotation]}))
        return PanopticFolder(str(results), str(tmp_path)), PanopticFolder(path, root)

    return write


def test_each_mistake(save):
    """The cat is called a dog and loses a fifth; another dog is in the sky, which is not found."""
    predicted = np.where(scene()[0] == 7, 3, 0)
    predicted[:4, 5:], predicted[5:7, 5:] = 4, 5
    report = explain(*save(predicted, [segment(3, GRASS), segment(4, DOG), segment(5, DOG)]))
    # grass 100, cat 0 (missed), dog 0 (twice false), sky 0 (missed)
    assert report["All"]["PQ"] == 25
    assert report["All"]["alone"] == pytest.approx(
        {"classes": 45, "false positives": 50, "missed": 75, "masks": 25}
    )
    assert report["All"]["in turn"] == pytest.approx(
        {"classes": 45, "false positives": 70, "missed": 95, "masks": 100}
    )
    assert report["Things"]["PQ"] == 0 and report["Stuff"]["PQ"] == 50
    assert report["Things"]["alone"]["classes"] == pytest.approx(40)
    assert report["Stuff"]["alone"] == pytest.approx(
        {"classes": 50, "false positives": 50, "missed": 100, "masks": 50}
    )


def test_masks_alone_leave_recognition(save):
    """Four fifths of the cat and a dog that does not exist: SQ 0.8, RQ of cats 1."""
    predicted = np.where(scene()[0] == 1, 0, scene()[0])
    predicted[:4, 5:] = 1
    report = explain(*save(predicted, scene()[1]))
    assert report["Things"]["PQ"] == pytest.approx(80)
    assert report["Things"]["alone"]["masks"] == 100
    assert report["Things"]["alone"]["missed"] == pytest.approx(80)


def test_nothing_is_wrong(save):
    report = explain(*save(*scene()))
    for kind in ("alone", "in turn"):
        assert report["All"][kind] == dict.fromkeys(MISTAKES, 100.0)


def test_group_that_does_not_occur(save):
    ids, segments = np.full((4, 4), 7), [segment(7, GRASS)]
    report = explain(*save(ids, segments, (ids, segments)))
    assert math.isnan(report["Things"]["PQ"]) and report["All"]["PQ"] == 100


def test_crowds_take_no_prediction(save):
    ids, (grass, _, sky) = scene()
    truth = ids, [grass, segment(1, CAT, iscrowd=1), sky]
    report = explain(*save(ids, [grass, segment(1, DOG), sky], truth))
    assert report["Things"]["PQ"] == report["Things"]["alone"]["classes"] == 0


def test_image_without_prediction(save):
    predictions, truth = save(*scene())
    with open(predictions.json, "w") as f:
        json.dump({"annotations": []}, f)
    report = explain(predictions, truth)
    assert report["All"]["PQ"] == 0
    assert report["All"]["alone"] == {
        **dict.fromkeys(MISTAKES, 0.0),
        "missed": 100,
    }


def merge_best(masks, classes, stuff, index, segments):
    return best_merge(np.array(masks, bool), np.array(classes), stuff, index, segments, THINGS)


def test_best_merge():
    segments = [segment(70, GRASS), segment(10, CAT), segment(20, CAT), segment(90, SKY)]
    index = np.array([[2] * 4 + [3] * 4, [1] * 8, [1] * 8, [4] * 8])
    first, second, both, grass = np.zeros((4, 4, 8), bool)
    first[0, :5] = True  # one pixel of the other cat
    second[0, 4:] = True
    both[0] = True
    grass[1] = True
    stuff = np.full((4, 8), GRASS)
    stuff[3, :4] = SKY  # half of the sky is not enough
    masks, classes = [both, first, second, second, grass], [CAT, CAT, CAT, DOG, CAT]
    result = merge_best(masks, classes, stuff, index, segments)
    assert result[0].tolist() == [10] * 4 + [20] * 4
    assert (result[1:3] == 70).all()
    # The grass goes on over half of the sky: 20 pixels, 16 of them right.
    assert result[3].tolist() == [0] * 4 + [70] * 4


def test_best_merge_gives_contested_background_to_the_better_instance():
    segments = [segment(10, CAT), segment(20, CAT), segment(70, GRASS)]
    index = np.array([[1, 1, 1, 1, 3, 2, 2, 2]])
    left, right = np.zeros((2, 1, 8), bool)
    left[0, :5], right[0, 4:7] = True, True  # IoU 4/5 and 2/4
    result = merge_best([left, right], [CAT, CAT], np.full((1, 8), SKY), index, segments)
    assert result[0].tolist() == [10] * 5 + [0] * 3
    right[0, 4:] = True  # now 3/4
    result = merge_best([left, right], [CAT, CAT], np.full((1, 8), SKY), index, segments)
    assert result[0].tolist() == [10] * 5 + [20] * 3


def test_best_merge_of_nothing():
    segments = [segment(10, CAT, iscrowd=1), segment(20, CAT)]
    index = np.array([[1, 2]])
    stuff = np.full((1, 2), -1)
    assert not merge_best(np.zeros((0, 1, 2)), [], stuff, index, segments).any()
    crowd = np.array([[[True, False]]])
    assert not merge_best(crowd, [CAT], stuff, index, segments).any()


def test_evaluation_with_raw_outputs(register, tmp_path, capsys):
    metrics = evaluate_noisy(register, tmp_path, copies=2)
    raw = RawOutputs.open(str(tmp_path))
    predictions = PanopticFolder(str(tmp_path / "panoptic_predictions.json"))
    truth = PanopticFolder(raw.truth["panoptic_json"], raw.truth["panoptic_root"])
    report = explain(predictions, truth, raw=raw)
    assert report["All"]["PQ"] == pytest.approx(metrics["PQ"])
    assert report["All"]["PQ"] < report["All"]["best merge"] < 100
    assert report["All"]["in turn"]["masks"] == 100
    assert explain(predictions, truth, raw=raw, workers=2) == report
    main([str(tmp_path), "--workers", "1", "--json-out", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text()) == report
    assert as_text(report) in capsys.readouterr().out
    (tmp_path / "raw_outputs.json").unlink()
    main([str(tmp_path), "--workers", "1"])
    assert "best merge" not in capsys.readouterr().out


def test_raw_outputs_of_other_images(register, tmp_path):
    evaluate_noisy(register, tmp_path)
    index = tmp_path / "raw_outputs.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "images": []}))
    with pytest.raises(SystemExit, match="no raw output of image 0"):
        main([str(tmp_path)])


def test_nothing_was_saved(tmp_path):
    with pytest.raises(SystemExit, match="Which ground truth"):
        main([str(tmp_path)])
