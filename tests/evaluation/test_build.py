"""Which evaluators a dataset and a model get, their agreement over processes, and the tables."""

import json
import math

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets import register_coco_panoptic_separated as register_separated
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from panoptic_scenes import (
    CATEGORIES,
    detections,
    evaluate_perfect,
    inputs_of,
    perfect_output,
    two_images,
    write_panoptic,
)
from stand_ins import Branches

from spatialflow.data import register_coco_panoptic
from spatialflow.engine import launch
from spatialflow.evaluation import PanopticGroundTruth, build_evaluator, format_results


@pytest.mark.parametrize(
    "things, stuff, tasks",
    [
        (True, True, ["panoptic_seg", "bbox", "segm", "sem_seg"]),
        (True, False, ["bbox", "segm"]),
        (False, True, ["bbox", "sem_seg"]),
        (False, False, ["bbox"]),
    ],
)
def test_measures_follow_the_branches(register, things, stuff, tasks):
    name = register(two_images())
    results = evaluate_perfect(build_evaluator(Branches(things, stuff), name), name)
    assert list(results) == tasks
    headline = {"panoptic_seg": "PQ", "bbox": "AP", "segm": "AP", "sem_seg": "mIoU"}
    assert [results[t][headline[t]] for t in tasks] == pytest.approx([100] * len(tasks))


def test_nothing_predicted_at_all(register):
    name = register(two_images())
    truth, evaluator = PanopticGroundTruth(name), build_evaluator(Branches(), name)
    evaluator.reset()
    for image in inputs_of(name):
        output = perfect_output(truth, image["image_id"])
        output["instances"] = output["instances"][:0]
        output["panoptic_seg"] = (output["panoptic_seg"][0] * 0, [])
        evaluator.process([image], [output])
    results = evaluator.evaluate()
    assert results["panoptic_seg"]["PQ"] == 0
    assert math.isnan(results["segm"]["AP"])
    assert "| Things |" in format_results(results)


@pytest.mark.parametrize("with_masks", [False, True])
def test_coco_instance_dataset_gets_the_ap_of_what_it_annotates(tmp_path, with_masks):
    content = {
        "info": {},
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 8}],
        "categories": [{"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 4, 4], "area": 16}
            | {"iscrowd": 0}
        ],
    }
    if with_masks:
        content["annotations"][0]["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4]]
    path, name = tmp_path / "instances.json", "evaluation_test_instances"
    path.write_text(json.dumps(content))
    register_coco_instances(
        name,
        {"thing_classes": ["cat"], "thing_dataset_id_to_contiguous_id": {2: 0}},
        str(path),
        str(tmp_path),
    )
    evaluator = build_evaluator(Branches(), name)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [detections((8, 8), (0, 0, 4, 4, 0, 0.9))])
    results = evaluator.evaluate()
    assert list(results) == (["bbox", "segm"] if with_masks else ["bbox"])
    assert [metrics["AP"] for metrics in results.values()] == pytest.approx([100] * len(results))


def test_separated_coco_uses_the_instances_json(coco_sample):
    coco, name = coco_sample / "coco", "evaluation_test_coco"
    register_separated(
        name,
        _get_builtin_metadata("coco_panoptic_separated"),
        str(coco / "val2017"),
        str(coco / "panoptic_val2017"),
        str(coco / "annotations" / "panoptic_val2017.json"),
        "unused",
        str(coco / "annotations" / "instances_val2017.json"),
    )
    try:
        separated = f"{name}_separated"
        evaluator = build_evaluator(Branches(), separated)
        results = evaluate_perfect(evaluator, separated)
    finally:
        for registered in (f"{name}_separated", f"{name}_stuffonly"):
            DatasetCatalog.remove(registered)
            MetadataCatalog.remove(registered)
    assert results["panoptic_seg"]["PQ"] == results["sem_seg"]["mIoU"] == 100
    # The polygons fill a hole in two of the forty objects, so the last thresholds may fail.
    assert 97 < results["segm"]["AP"] <= 100
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_dataset_of_another_kind():
    with pytest.raises(ValueError, match=r"voc_2007_val has evaluator_type 'pascal_voc'"):
        build_evaluator(Branches(), "voc_2007_val")


def _evaluate_share(paths, out):
    """Evaluate this process's share of a dataset, of whose images the last segment is missed."""
    name = "evaluation_test_shared"
    register_coco_panoptic(name, *paths)
    truth, inputs, evaluator = (
        PanopticGroundTruth(name),
        inputs_of(name),
        build_evaluator(Branches(), name),
    )
    evaluator.reset()
    for i in InferenceSampler(len(inputs)):
        output = perfect_output(truth, inputs[i]["image_id"])
        id_map, segments = output["panoptic_seg"]
        id_map[id_map == segments.pop()["id"]] = 0
        output["instances"] = output["instances"][int(i == 0) :]
        output["sem_seg"] = output["sem_seg"].roll(2, dims=1)
        evaluator.process([inputs[i]], [output])
    result = out / f"{comm.get_world_size()}_{comm.get_rank()}.json"
    result.write_text(json.dumps(evaluator.evaluate()))


def test_two_processes_give_the_numbers_of_one(tmp_path):
    paths = write_panoptic(tmp_path, two_images() * 2 + two_images()[:1], CATEGORIES)
    _evaluate_share(paths, tmp_path)
    DatasetCatalog.remove("evaluation_test_shared")
    MetadataCatalog.remove("evaluation_test_shared")
    launch(_evaluate_share, 2, args=(paths, tmp_path), device="cpu")
    one, main, other = (
        json.loads((tmp_path / f"{n}.json").read_text()) for n in ("1_0", "2_0", "2_1")
    )
    assert other == {}
    assert list(main) == ["panoptic_seg", "bbox", "segm", "sem_seg"]
    for task, metrics in one.items():
        assert main[task] == pytest.approx(metrics, nan_ok=True), task
    assert 0 < one["panoptic_seg"]["PQ"] < 100
    assert 0 < one["segm"]["AP"] < 100
    assert 0 < one["sem_seg"]["mIoU"] < 100


def test_model_of_stuff_alone(register):
    model = Branches(masks=False, boxes=False)
    name = register(two_images())
    assert list(evaluate_perfect(build_evaluator(model, name), name)) == ["sem_seg"]


@pytest.mark.parametrize("masks, stuff", [(True, True), (True, False)])
def test_model_that_does_not_merge_writes_no_map(register, tmp_path, caplog, masks, stuff):
    name, folder = register(two_images()), tmp_path / "out"
    model = Branches(masks, stuff, merge=None)
    evaluator = build_evaluator(model, name, str(folder), str(folder))
    assert f"{name}: no panoptic predictions and no raw outputs are written" in caplog.text
    assert "COMBINE.ENABLED is False" in caplog.text
    results = evaluate_perfect(evaluator, name)
    assert list(results) == ["bbox", "segm", "sem_seg"][: 2 + stuff]
    assert {p.name.split("_")[0] for p in folder.iterdir()} == {"coco", "instances"}
    caplog.clear()
    build_evaluator(model, name)
    assert not caplog.records
