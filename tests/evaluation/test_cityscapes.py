"""Evaluation by Cityscapes' own scripts."""

import math
import pickle

import detectron2.data.datasets.cityscapes as detectron2_loaders
import numpy as np
import pytest
import torch
from cityscapes_tree import IDS, write_tree
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator as Detectron2InstanceEvaluator
from detectron2.evaluation import CityscapesSemSegEvaluator as Detectron2SemSegEvaluator
from detectron2.utils import comm
from panoptic_scenes import evaluate, evaluate_perfect, inputs_of, perfect_output
from stand_ins import Branches

from spatialflow.evaluation import PanopticGroundTruth, build_evaluator, format_results
from spatialflow.evaluation.cityscapes import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    write_labels,
)

NAME = "evaluation_test_cityscapes_tree"


def register_tree(root):
    """Give a prepared tree a name, with the metadata of Detectron2's."""
    builtin = MetadataCatalog.get("cityscapes_fine_panoptic_val").as_dict()
    gt = root / "gtFine"
    MetadataCatalog.get(NAME).set(
        **{
            **builtin,
            "name": NAME,
            "image_root": str(root / "leftImg8bit" / "val"),
            "panoptic_root": str(gt / "cityscapes_panoptic_val"),
            "panoptic_json": str(gt / "cityscapes_panoptic_val.json"),
            "gt_dir": str(gt / "val"),
        }
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("cityscapes")
    write_tree(root)
    convert2panoptic(str(root / "gtFine"), setNames=["val"])
    return root


@pytest.fixture
def dataset(tree):
    register_tree(tree)
    yield NAME
    MetadataCatalog.remove(NAME)


def worse_output(truth, image_id):
    """The first car is missed, the person taken for a rider, and a strip of road for sky."""
    output = perfect_output(truth, image_id)
    road, sky = 0, 10
    scores = output["sem_seg"]
    scores[:, 55:58] = 0
    scores[sky, 55:58] = 1
    instances = output["instances"]
    assert instances.pred_classes.tolist() == [0, 2, 2]  # person, car, car
    instances.pred_classes[0] = 1
    output["instances"] = instances[:2]
    assert scores.argmax(dim=0)[52, 0] == road
    return output


def test_perfect_predictions(dataset):
    results = evaluate_perfect(build_evaluator(Branches(), dataset), dataset)
    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg"]
    assert results["panoptic_seg"]["PQ"] == 100
    assert results["bbox"]["AP"] == pytest.approx(100)
    found = {k: v for k, v in results["segm"].items() if not math.isnan(v)}
    assert found == pytest.approx({"AP": 100, "AP50": 100, "AP-person": 100, "AP-car": 100})
    found = {k: v for k, v in results["sem_seg"].items() if not math.isnan(v)}
    names = ["IoU", "iIoU", "IoU_sup", "iIoU_sup", "IoU-road", "IoU-sky", "IoU-person", "IoU-car"]
    assert found == pytest.approx(dict.fromkeys(names, 100))


def test_worse_predictions(dataset):
    truth, inputs = PanopticGroundTruth(dataset), inputs_of(dataset)
    outputs = [worse_output(truth, i["image_id"]) for i in inputs]
    results = evaluate(build_evaluator(Branches(), dataset), inputs, outputs)
    # Of the person nothing is found, of four cars two, without a mistake before them.
    assert results["segm"]["AP-person"] == 0
    assert results["segm"]["AP-car"] == pytest.approx(50)
    assert results["segm"]["AP"] == pytest.approx(25)
    labels = [torch.from_numpy(truth.load(i).id_map.copy()) for i in IDS]
    road, sky = (sum(int((ids == i).sum()) for ids in labels) for i in (7, 23))
    strip = 2 * 3 * 128
    assert results["sem_seg"]["IoU-road"] == pytest.approx(100 * (road - strip) / road)
    assert results["sem_seg"]["IoU-sky"] == pytest.approx(100 * sky / (sky + strip))
    assert results["sem_seg"]["IoU_sup"] < 100 == results["sem_seg"]["IoU-car"]
    table = format_results(results)
    for column in ("box AP", "mask AP", "class IoU", "class iIoU", "category IoU", "category iIoU"):
        assert column in table


def test_equals_detectron2s_evaluators(dataset, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the script writes a file where it runs
    truth = PanopticGroundTruth(dataset)
    inputs = [{**i, "file_name": f"{i['image_id']}_leftImg8bit.png"} for i in inputs_of(dataset)]
    outputs = [worse_output(truth, i["image_id"]) for i in inputs]
    ours = evaluate(build_evaluator(Branches(), dataset), inputs, outputs)
    theirs = evaluate(Detectron2SemSegEvaluator(dataset), inputs, outputs)
    for key, value in theirs["sem_seg"].items():
        assert ours["sem_seg"][key] == pytest.approx(value, abs=1e-9), key
    for output in outputs:  # their class numbers count the stuff
        output["instances"].pred_classes += 11
    theirs = evaluate(Detectron2InstanceEvaluator(dataset), inputs, outputs)
    for key, value in theirs["segm"].items():
        assert ours["segm"][key] == pytest.approx(value, abs=1e-9), key


def test_nothing_found(dataset):
    truth, inputs = PanopticGroundTruth(dataset), inputs_of(dataset)
    outputs = [perfect_output(truth, i["image_id"]) for i in inputs]
    for output in outputs:
        output["instances"] = output["instances"][:0]
    assert evaluate(build_evaluator(Branches(), dataset), inputs, outputs)["segm"]["AP"] == 0


@pytest.mark.parametrize(
    "things, stuff, tasks",
    [(True, False, ["bbox", "segm"]), (False, True, ["bbox", "sem_seg"]), (False, False, ["bbox"])],
)
def test_measures_follow_the_branches(dataset, things, stuff, tasks):
    evaluator = build_evaluator(Branches(things, stuff), dataset)
    assert list(evaluate_perfect(evaluator, dataset)) == tasks


def test_works_where_detectron2s_imports_do_not(dataset, monkeypatch):
    """Detectron2's main looks for the scripts under a name that nobody outside has."""

    def broken(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'deeplearning'")

    for evaluator in (Detectron2InstanceEvaluator, Detectron2SemSegEvaluator):
        monkeypatch.setattr(evaluator, "process", broken)
        monkeypatch.setattr(evaluator, "evaluate", broken)
    for loader in ("load_cityscapes_instances", "load_cityscapes_semantic"):
        monkeypatch.setattr(detectron2_loaders, loader, broken)
    results = evaluate_perfect(build_evaluator(Branches(), dataset), dataset)
    assert results["segm"]["AP"] == results["sem_seg"]["IoU"] == pytest.approx(100)


def test_label_images_are_missing(dataset, tmp_path):
    MetadataCatalog.get(dataset).__dict__["gt_dir"] = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="instanceIds.png: file not found .2 of 2"):
        build_evaluator(Branches(), dataset)


@pytest.mark.parametrize("kind", [CityscapesInstanceEvaluator, CityscapesSemSegEvaluator])
def test_the_counts_of_processes_add_up(dataset, kind, monkeypatch):
    truth, inputs = PanopticGroundTruth(dataset), inputs_of(dataset)
    outputs = [worse_output(truth, i["image_id"]) for i in inputs]
    together = evaluate(kind(truth), inputs, outputs)
    parts = []

    def gather(part):
        """What the last of as many processes as have called would get."""
        parts.append(pickle.loads(pickle.dumps(part)))
        return parts

    monkeypatch.setattr(comm, "gather", gather)
    alone = [evaluate(kind(truth), [i], [o]) for i, o in zip(inputs, outputs, strict=True)]
    assert alone[0] != together
    for task, metrics in together.items():
        assert alone[1][task] == pytest.approx(metrics, nan_ok=True)


def test_only_the_main_process_has_results(dataset, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    truth = PanopticGroundTruth(dataset)
    for kind in (CityscapesInstanceEvaluator, CityscapesSemSegEvaluator):
        assert kind(truth).evaluate() is None


def test_image_ids_cannot_lead_out_of_the_folder(tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="'../x_pred.png' is not below"):
        write_labels(str(folder), "../x", np.zeros((2, 2), int), [7])
    assert not list(tmp_path.rglob("*.png"))
