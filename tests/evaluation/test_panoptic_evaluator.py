"""PanopticEvaluator: class mapping, warnings, errors, written predictions, several processes."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic as register_standard
from detectron2.data.datasets import register_coco_panoptic_separated as register_separated
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from panoptic_scenes import (
    evaluate,
    evaluate_perfect,
    inputs_of,
    perfect_output,
    segment,
    two_images,
    write_panoptic,
)
from panopticapi.evaluation import pq_compute

from spatialflow.data import register_coco_panoptic
from spatialflow.evaluation import PanopticEvaluator, PanopticGroundTruth

MAIN_METRICS = [q + group for group in ("", "_th", "_st") for q in ("PQ", "SQ", "RQ")]


def panoptic_seg(id_map, *segments):
    """Model output from an id map and (id, isthing, category_id) triples."""
    keys = ("id", "isthing", "category_id")
    segments = [dict(zip(keys, s, strict=True)) for s in segments]
    return {"panoptic_seg": (torch.as_tensor(id_map, dtype=torch.int32), segments)}


def run(dataset_name, *outputs, output_dir=None):
    evaluator = PanopticEvaluator(PanopticGroundTruth(dataset_name), output_dir)
    return evaluate(evaluator, inputs_of(dataset_name)[: len(outputs)], outputs)["panoptic_seg"]


def forget(name):
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_perfect_prediction(register):
    name = register(two_images())
    metrics = evaluate_perfect(PanopticEvaluator(PanopticGroundTruth(name)), name)["panoptic_seg"]
    assert {k: metrics[k] for k in MAIN_METRICS} == dict.fromkeys(MAIN_METRICS, 100)
    assert [k for k in metrics if k not in MAIN_METRICS] == [
        "PQ-grass",
        "PQ-cat",
        "PQ-dog",
        "PQ-sky",
    ]


def test_metrics_are_percent_of_the_right_groups(register):
    # The cat is found with IoU 12/16; grass takes the rest, 16 of 20; no dog and no sky anywhere.
    gt_map = np.full((6, 6), 8)
    gt_map[:4, :4] = 7
    pred_map = np.full((6, 6), 1)
    pred_map[:4, :3] = 2
    name = register([(gt_map, [segment(7, 3), segment(8, 0)])])
    metrics = run(name, panoptic_seg(pred_map, (1, False, 1), (2, True, 0)))
    cat, grass = 100 * 12 / 16, 100 * 20 / 24
    assert metrics["PQ_th"] == metrics["SQ_th"] == metrics["PQ-cat"] == pytest.approx(cat)
    assert metrics["PQ_st"] == metrics["PQ-grass"] == pytest.approx(grass)
    assert metrics["PQ"] == pytest.approx((cat + grass) / 2)
    assert metrics["RQ"] == metrics["RQ_th"] == metrics["RQ_st"] == 100
    assert math.isnan(metrics["PQ-dog"]) and math.isnan(metrics["PQ-sky"])


def test_counts_start_anew_after_reset(register):
    name = register(two_images())
    evaluator = PanopticEvaluator(PanopticGroundTruth(name))
    void = [panoptic_seg(np.zeros(m.shape)) for m, _ in two_images()]
    assert evaluate(evaluator, inputs_of(name), void)["panoptic_seg"]["PQ"] == 0
    assert evaluate_perfect(evaluator, name)["panoptic_seg"]["PQ"] == 100


def test_areas_of_the_json_change_nothing_but_are_reported_once(register, caplog):
    images = two_images()
    for _, segments in images:
        for s in segments[:2]:
            s["area"] = 10
    name = register(images)
    with caplog.at_level(logging.WARNING):
        result = evaluate_perfect(PanopticEvaluator(PanopticGroundTruth(name)), name)
    assert result["panoptic_seg"]["PQ"] == 100
    (message,) = [r.getMessage() for r in caplog.records]
    assert "4 areas" in message
    assert "scene0.png" in message
    assert "segment 1000" in message
    assert "says 10" in message


def test_sound_data_gives_no_warning(register, caplog):
    name = register(two_images())
    with caplog.at_level(logging.WARNING):
        evaluate_perfect(PanopticEvaluator(PanopticGroundTruth(name)), name)
    assert not caplog.records


def test_part_of_the_dataset_is_reported(register, caplog):
    name = register(two_images())
    first = perfect_output(PanopticGroundTruth(name), 0)
    with caplog.at_level(logging.WARNING):
        assert run(name, first)["PQ"] == 100
    assert "1 of the 2 annotated images" in caplog.text


def test_image_that_is_not_annotated(register):
    name = register(two_images())
    evaluator = PanopticEvaluator(PanopticGroundTruth(name))
    with pytest.raises(ValueError, match=r"Image 77 is not annotated in .*panoptic\.json"):
        evaluator.process([{"image_id": 77}], [panoptic_seg(np.zeros((4, 4)))])


@pytest.mark.parametrize(
    "predicted, message",
    [
        ((1, True, 2), r"predicts thing class 2, but dataset .* has \[0, 1\]"),
        ((1, False, 3), r"predicts stuff label 3, but dataset .* has \[1, 2\]"),
        ((1, False, 0), r"predicts stuff label 0, but"),
        ((9, True, 0), r"Image 0, .*scene0\.png: the map of the prediction has ids .*\[1\]"),
    ],
)
def test_prediction_that_cannot_be_scored(register, predicted, message):
    name = register(two_images())
    with pytest.raises(ValueError, match=message):
        run(name, panoptic_seg(np.ones((24, 32)), predicted))


def test_prediction_of_another_size(register):
    name = register(two_images())
    with pytest.raises(ValueError, match=r"scene0\.png: the prediction is 24x32, .* 32x24"):
        run(name, panoptic_seg(np.ones((32, 24)), (1, True, 0)))


def test_png_and_json_with_different_segments(register):
    id_map, segments = two_images()[0]
    name = register([(id_map, segments[1:])])
    with pytest.raises(ValueError, match=r"scene0\.png: the map of the ground truth .*\[1000\]"):
        run(name, panoptic_seg(np.ones((24, 32)), (1, True, 0)))


def test_nothing_to_measure_is_nan_with_a_warning(register, caplog):
    name = register([(np.zeros((8, 8), int), [])])
    with caplog.at_level(logging.WARNING):
        metrics = run(name, panoptic_seg(np.ones((8, 8)), (1, True, 0)))
    assert all(math.isnan(v) for v in metrics.values())
    assert "no class of All, Things, Stuff occurs" in caplog.text


def test_written_only_when_asked_and_scored_alike_by_panopticapi(register, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = register(two_images())
    truth = PanopticGroundTruth(name)
    outputs = [perfect_output(truth, i) for i in (0, 1)]
    for output in outputs:
        output["panoptic_seg"][0][:] = output["panoptic_seg"][0].roll(2, dims=0)
    before = sorted(tmp_path.rglob("*"))
    metrics = run(name, *outputs)
    assert sorted(tmp_path.rglob("*")) == before

    out = tmp_path / "out"
    assert run(name, *outputs, output_dir=str(out)) == metrics
    metadata = MetadataCatalog.get(name)
    theirs = pq_compute(
        metadata.panoptic_json, str(out / "panoptic_predictions.json"), metadata.panoptic_root
    )
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for key in ("pq", "sq", "rq"):
            expected = pytest.approx(100 * theirs[group][key], abs=1e-9)
            assert metrics[key.upper() + suffix] == expected
    assert 20 < metrics["PQ"] < 95
    written = json.loads((out / "panoptic_predictions.json").read_text())["annotations"]
    assert [a["file_name"] for a in written] == ["scene0.png", "scene1.png"]
    assert written[1]["segments_info"] == [
        {"id": 5, "category_id": 0, "isthing": False, "area": 112}
    ]
    keys = ("name", "image_root", "panoptic_root", "panoptic_json")
    assert json.loads((out / "dataset.json").read_text()) == {k: metadata.get(k) for k in keys}


@pytest.mark.parametrize("absolute", [True, False])
def test_ground_truth_is_never_overwritten(register, tmp_path, absolute):
    name = register(two_images())
    truth = PanopticGroundTruth(name)
    png = Path(truth.load(0).png)
    before = png.read_bytes()
    out = png.parent.parent / "out"
    truth.png_names[0] = str(png) if absolute else f"../../png/{png.name}"
    outputs = [panoptic_seg(np.zeros(truth.load(0).id_map.shape))]
    with pytest.raises(ValueError, match="is not below .*panoptic_predictions"):
        evaluate(PanopticEvaluator(truth, str(out)), [{"image_id": 0}], outputs)
    assert png.read_bytes() == before and not out.exists()


def test_dataset_json_has_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", ".")
    write_panoptic(tmp_path, two_images())
    name = "evaluation_test_relative"
    register_coco_panoptic(name, "images", "png", "panoptic.json")
    try:
        PanopticEvaluator(PanopticGroundTruth(name), "out").evaluate()
    finally:
        forget(name)
    dataset = json.loads(Path("out/dataset.json").read_text())
    assert dataset["panoptic_root"] == str(tmp_path / "png")
    assert json.loads(Path("out/panoptic_predictions.json").read_text())["annotations"] == []


def test_cityscapes_numbering(cityscapes):
    # Its stuff labels are train ids, its thing classes count from 0.
    id_map = PanopticGroundTruth(cityscapes).load(0).id_map.copy()
    metrics = run(cityscapes, panoptic_seg(id_map, (7000, False, 0), (26001, True, 2)))
    assert metrics["PQ"] == metrics["PQ-road"] == metrics["PQ-car"] == 100
    with pytest.raises(ValueError, match="stuff label 13"):  # car's, which the merge drops
        run(cityscapes, panoptic_seg(id_map, (7000, False, 0), (26001, False, 13)))


def test_perfect_prediction_of_camvid(camvid):
    name = "evaluation_test_camvid"
    register_coco_panoptic(
        name, *(str(camvid / part) for part in ("val", "panoptic_val", "panoptic_val.json"))
    )
    try:
        evaluator = PanopticEvaluator(PanopticGroundTruth(name))
        metrics = evaluate_perfect(evaluator, name)["panoptic_seg"]
    finally:
        forget(name)
    assert set(metrics.values()) == {100} and len(metrics) == 9 + 11


@pytest.mark.parametrize("kind", ["own", "standard", "separated"])
def test_perfect_prediction_of_the_coco_sample(coco_sample, kind):
    coco, name = coco_sample / "coco", "evaluation_test_coco"
    images, png = str(coco / "val2017"), str(coco / "panoptic_val2017")
    panoptic_json = str(coco / "annotations" / "panoptic_val2017.json")
    instances = str(coco / "annotations" / "instances_val2017.json")
    if kind == "own":
        register_coco_panoptic(name, images, png, panoptic_json)
    elif kind == "standard":
        metadata = _get_builtin_metadata("coco_panoptic_standard")
        register_standard(name, metadata, images, png, panoptic_json, instances)
    else:
        metadata = _get_builtin_metadata("coco_panoptic_separated")
        register_separated(name, metadata, images, png, panoptic_json, "unused", instances)
        forget(f"{name}_stuffonly")
        name = f"{name}_separated"
    try:
        evaluator = PanopticEvaluator(PanopticGroundTruth(name))
        metrics = evaluate_perfect(evaluator, name)["panoptic_seg"]
    finally:
        forget(name)
    assert {k: metrics[k] for k in MAIN_METRICS} == dict.fromkeys(MAIN_METRICS, 100)
    annotations = json.loads(Path(panoptic_json).read_text())["annotations"]
    segments = [s for a in annotations for s in a["segments_info"] if not s["iscrowd"]]
    of_class = {k: v for k, v in metrics.items() if k.startswith("PQ-") and not math.isnan(v)}
    assert len(of_class) == len({s["category_id"] for s in segments})
    assert set(of_class.values()) == {100}
