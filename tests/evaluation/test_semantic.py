"""mIoU and fwIoU of the stuff labels that the panoptic ground truth gives."""

import math
import warnings

import numpy as np
import pytest
import torch
from panoptic_scenes import evaluate, evaluate_perfect, inputs_of, segment, two_images

from spatialflow.evaluation import PanopticGroundTruth, PanopticSemSegEvaluator


def run(name, *label_maps):
    evaluator = PanopticSemSegEvaluator(PanopticGroundTruth(name))
    outputs = [
        {"sem_seg": torch.nn.functional.one_hot(torch.as_tensor(m), 3).permute(2, 0, 1).float()}
        for m in label_maps
    ]
    return evaluate(evaluator, inputs_of(name), outputs)["sem_seg"]


def test_perfect_prediction(register):
    name = register(two_images())
    metrics = evaluate_perfect(PanopticSemSegEvaluator(PanopticGroundTruth(name)), name)["sem_seg"]
    wanted = ("mIoU", "fwIoU", "IoU-things", "IoU-grass", "IoU-sky")
    assert {k: metrics[k] for k in wanted} == dict.fromkeys(wanted, 100)


def test_known_iou_with_things_as_other_and_void_left_out(register):
    gt = np.repeat([[1, 1, 2, 2, 3, 3, 0, 0]], 4, axis=0)  # cat, crowd of dogs, grass, void
    name = register([(gt, [segment(1, 3), segment(2, 4, iscrowd=1), segment(3, 0)])])
    metrics = run(name, np.repeat([[0, 0, 0, 1, 1, 1, 2, 0]], 4, axis=0))
    assert metrics["IoU-things"] == pytest.approx(100 * 3 / 4)
    assert metrics["IoU-grass"] == pytest.approx(100 * 2 / 3)
    assert math.isnan(metrics["IoU-sky"])
    assert metrics["mIoU"] == pytest.approx(100 * (3 / 4 + 2 / 3) / 2)
    assert metrics["fwIoU"] == pytest.approx(100 * (3 / 4 * 4 / 6 + 2 / 3 * 2 / 6))


def test_images_accumulate_without_keeping_predictions(register):
    name = register(two_images() * 3)
    evaluator = PanopticSemSegEvaluator(PanopticGroundTruth(name))
    evaluate_perfect(evaluator, name)
    annotated = sum(int((m > 0).sum()) for m, _ in two_images() * 3)
    assert evaluator._conf_matrix[:-1, :-1].sum() == annotated
    assert evaluator._predictions == []


def test_only_void_is_nan_without_a_warning(register):
    name = register([(np.zeros((8, 8), int), [])])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        metrics = run(name, np.ones((8, 8), int))
    assert math.isnan(metrics["mIoU"])


def test_png_and_json_with_different_segments(register):
    id_map, segments = two_images()[0]
    name = register([(id_map, segments[1:])])
    with pytest.raises(ValueError, match=r"scene0\.png .*1000"):
        run(name, np.ones((24, 32), int))
