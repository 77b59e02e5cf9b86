"""Box and mask AP against the things of the panoptic ground truth."""

import json
import math

import numpy as np
import pytest
from detectron2.evaluation import coco_evaluation
from panoptic_scenes import detections, evaluate, evaluate_perfect, inputs_of, segment, two_images
from pycocotools import mask as mask_util
from pycocotools.cocoeval import COCOeval

from spatialflow.evaluation import PanopticGroundTruth, PanopticInstanceEvaluator
from spatialflow.evaluation.instances import coco_annotations

BOTH = ("bbox", "segm")


def run(name, *outputs, tasks=BOTH, output_dir=None):
    evaluator = PanopticInstanceEvaluator(PanopticGroundTruth(name), tasks, output_dir)
    return evaluate(evaluator, inputs_of(name)[: len(outputs)], outputs)


def test_annotations_are_counted_in_the_png(register):
    id_map = np.zeros((8, 10), int)
    id_map[2:6, 3:9], id_map[3:5, 4:6], id_map[7, :] = 7, 900, 20  # 7 has a hole, filled by 900
    wrong = {"area": 1, "bbox": [0, 0, 1, 1]}
    segments = [segment(7, 3) | wrong, segment(900, 4, iscrowd=1) | wrong, segment(20, 0)]
    truth = PanopticGroundTruth(register([(id_map, segments)])).load(0)
    cat, crowd = coco_annotations(5, truth, frozenset({3, 4}))
    assert np.array_equal(mask_util.decode(cat.pop("segmentation")), id_map == 7)
    assert np.array_equal(mask_util.decode(crowd.pop("segmentation")), id_map == 900)
    assert cat == {
        "image_id": 5,
        "category_id": 3,
        "iscrowd": 0,
        "area": 20,
        "bbox": [3, 2, 6, 4],
    }
    assert crowd == {
        "image_id": 5,
        "category_id": 4,
        "iscrowd": 1,
        "area": 4,
        "bbox": [4, 3, 2, 2],
    }
    assert coco_annotations(5, truth, frozenset()) == []


def test_perfect_prediction(register):
    name = register(two_images())
    results = evaluate_perfect(PanopticInstanceEvaluator(PanopticGroundTruth(name), BOTH), name)
    for task in BOTH:
        assert results[task]["AP"] == pytest.approx(100)
        assert results[task]["AP-cat"] == pytest.approx(100)
        assert results[task]["AP-dog"] == pytest.approx(100)


def test_known_ap(register):
    # One cat exactly; one with IoU 4/5 (4 of 5 columns), right at 7 of COCO's 10 thresholds.
    id_map = np.zeros((20, 40), int)
    id_map[:10, :10], id_map[:10, 20:30] = 1, 2
    name = register([(id_map, [segment(1, 3), segment(2, 3)])])
    found = detections(
        id_map.shape, (0, 0, 10, 10, 0, 0.9), (20, 0, 28, 10, 0, 0.8), (0, 0, 3, 3, 0, 0.1)
    )
    for task, metrics in run(name, found).items():
        # A recall of 1/2 covers 51 of COCO's 101 recall points.
        assert metrics["AP"] == pytest.approx(100 * (7 + 3 * 51 / 101) / 10), task
        assert metrics["AP50"] == pytest.approx(100)
        assert metrics["AP-cat"] == metrics["AP"]
        assert math.isnan(metrics["AP-dog"])


def test_crowd_is_neither_missed_nor_a_false_positive(register):
    id_map = np.zeros((20, 40), int)
    id_map[:10, :10], id_map[:10, 20:40] = 1, 2
    name = register([(id_map, [segment(1, 3), segment(2, 3, iscrowd=1)])])
    on_crowd, cat = (22, 0, 30, 10, 0, 0.99), (0, 0, 10, 10, 0, 0.5)
    for metrics in run(name, detections(id_map.shape, on_crowd, cat)).values():
        assert metrics["AP"] == pytest.approx(100)


def test_boxes_only(register):
    name = register(two_images())
    found = detections((24, 32), (2, 4, 12, 14, 0, 0.9))
    found["instances"].remove("pred_masks")
    assert list(run(name, found, tasks=("bbox",))) == ["bbox"]


@pytest.mark.parametrize("images", [two_images()[:1], [(np.zeros((24, 32), int), [])]])
def test_no_detection_is_nan_and_not_an_error(register, images):
    results = run(register(images), detections((24, 32)))
    assert sorted(results) == ["bbox", "segm"]
    assert all(math.isnan(v) for metrics in results.values() for v in metrics.values())


def test_no_thing_in_the_ground_truth_is_nan(register):
    name = register([(np.ones((24, 32), int), [segment(1, 0)])])
    results = run(name, detections((24, 32), (0, 0, 5, 5, 1, 0.9)))
    assert math.isnan(results["segm"]["AP"]) and math.isnan(results["bbox"]["AP-dog"])


def test_written_only_when_asked(register, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = register(two_images())
    found = detections((24, 32), (2, 4, 12, 14, 1, 0.5))
    before = sorted(tmp_path.rglob("*"))
    run(name, found)
    assert sorted(tmp_path.rglob("*")) == before
    run(name, found, output_dir=str(tmp_path / "out"))
    (written,) = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert (written["image_id"], written["category_id"]) == (0, 4)


def test_matches_of_a_task_end_before_the_next_one(register, monkeypatch):
    made = []

    class Recorded(COCOeval):
        def __init__(self, *args):
            assert not any(vars(e) for e in made), "the matches of the task before are still there"
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(coco_evaluation, "COCOeval", Recorded)
    name = register(two_images())
    evaluator = PanopticInstanceEvaluator(PanopticGroundTruth(name), BOTH)
    results = evaluate_perfect(evaluator, name)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)
    assert len(made) == 2 and not any(vars(e) for e in made)


def test_predictions_are_not_kept_after_the_evaluation(register):
    name = register(two_images())
    evaluator = PanopticInstanceEvaluator(PanopticGroundTruth(name), BOTH)
    evaluate_perfect(evaluator, name)
    assert evaluator.evaluate() == {}
    assert evaluate_perfect(evaluator, name)["segm"]["AP"] == pytest.approx(100)
