"""What is sent to benchmark servers, with ground truth and without."""

import json
import zipfile
from functools import partial

import cv2
import numpy as np
import pytest
from cityscapes_tree import IDS, SIZE, write_tree
from cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling import readPredInfo
from detectron2.data import DatasetCatalog, MetadataCatalog
from panoptic_scenes import evaluate, inputs_of, perfect_output
from raw_scenes import evaluate_noisy
from stand_ins import Branches
from tiny_runs import tiny_config, tiny_overrides

from spatialflow.cli import run_command
from spatialflow.config import config_dir, load_config
from spatialflow.data import load_dataset_dicts, prepare_datasets
from spatialflow.data.register import register_unannotated
from spatialflow.data.targets import read_panoptic_png
from spatialflow.engine import Trainer
from spatialflow.evaluation import PanopticGroundTruth, build_evaluator
from spatialflow.saved.raw_outputs import RawOutputs
from spatialflow.tools.convert import convert_cityscapes
from spatialflow.tools.submission import pack_panoptic
from spatialflow.tools.sweep import tasks_of

main = partial(run_command, "submit")

NAME = "panoptic_test-dev2017_ours_results"


@pytest.fixture
def evaluated(register, tmp_path):
    """The folder of an evaluation of two images."""
    folder = tmp_path / "inference"
    evaluate_noisy(register, folder)
    return folder


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_coco(evaluated, tmp_path, capsys):
    out = tmp_path / "zips"
    arguments = ["--algorithm", "ours", "--output-dir", str(out), "--workers", "1"]
    main(["coco", str(evaluated), *arguments])
    with zipfile.ZipFile(out / f"{NAME}.zip") as archive:
        names = [f"{NAME}/scene0.png", f"{NAME}/scene1.png", f"{NAME}.json"]
        assert archive.namelist() == names
        results = json.loads(archive.read(names[-1]))
        assert (
            archive.read(names[0])
            == (evaluated / "panoptic_predictions" / "scene0.png").read_bytes()
        )
    assert [a["image_id"] for a in results["annotations"]] == [0, 1]
    first = results["annotations"][0]
    assert first["file_name"] == "scene0.png"
    ids = read_panoptic_png(str(evaluated / "panoptic_predictions" / "scene0.png"))
    assert {s["id"] for s in first["segments_info"]} == set(np.unique(ids).tolist()) - {0}
    assert all(s.keys() == {"id", "category_id"} for s in first["segments_info"])
    assert f"{NAME}.zip: 2 images" in capsys.readouterr().out


def _drop_image(content):
    content["annotations"].pop()


def _drop_segment(content):
    content["annotations"][0]["segments_info"].pop()


def _unknown_category(content):
    content["annotations"][0]["segments_info"][0]["category_id"] = 77


def _unknown_image(content):
    content["annotations"][0]["image_id"] = 99


@pytest.mark.parametrize(
    "change, message",
    [
        (_drop_image, "1 of 2 images are not predicted, such as 1; 0 predicted"),
        (_unknown_image, "1 of 2 images are not predicted, such as 0; 1 predicted images are not"),
        (_drop_segment, r"scene0.png and its segments have different ids"),
        (_unknown_category, "image 0: segment 1 has category id 77"),
    ],
)
def test_predictions_are_checked(evaluated, tmp_path, change, message):
    change_json(evaluated / "panoptic_predictions.json", change)
    out = tmp_path / "a.zip"
    with pytest.raises(ValueError, match=message):
        pack_panoptic(str(evaluated), NAME, str(out))
    assert not out.exists()


def test_files_are_checked(evaluated, tmp_path):
    png = evaluated / "panoptic_predictions" / "scene1.png"
    cv2.imwrite(str(png), np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(SystemExit, match=r"scene1.png is 6x5, its image 16x16"):
        main(["coco", str(evaluated), "--algorithm", "ours", "--workers", "2"])
    png.unlink()
    with pytest.raises(FileNotFoundError, match="scene1.png not found"):
        pack_panoptic(str(evaluated), NAME, str(tmp_path / "a.zip"))
    (evaluated / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match="TEST.SAVE_PREDICTIONS True"):
        pack_panoptic(str(evaluated), NAME, str(tmp_path / "a.zip"))


def test_test_set_of_coco_without_ground_truth(toy_datasets, tmp_path):
    """From a JSON with images only, and classes of another dataset, to the zip."""
    toy = toy_datasets / "toy"
    images = json.loads((toy / "panoptic_val.json").read_text())["images"]
    (tmp_path / "image_info.json").write_text(json.dumps({"images": images, "categories": []}))
    entry = ["tiny_test", str(toy / "val"), str(tmp_path / "image_info.json"), "tiny_val"]
    options = {
        "DATASETS.UNANNOTATED": [entry],
        "DATASETS.TEST": ("tiny_test",),
        "TEST.SAVE_PREDICTIONS": True,
        "TEST.SAVE_RAW_OUTPUTS": True,
    }
    overrides = [str(text) for option in options.items() for text in option]
    cfg = tiny_config(toy_datasets, tmp_path, overrides=overrides)
    assert Trainer.test(cfg, Trainer.build_model(cfg)) == {}
    folder = tmp_path / "inference" / "tiny_test"
    main(["coco", str(folder), "--algorithm", "ours", "--output-dir", str(tmp_path)])
    with zipfile.ZipFile(tmp_path / f"{NAME}.zip") as archive:
        assert len(archive.namelist()) == 4
    raw = RawOutputs.open(str(folder))
    assert len(raw.files) == 3
    with pytest.raises(ValueError, match="of images without ground truth"):
        tasks_of(raw)
    with pytest.raises(ValueError, match="set TEST.SAVE_PREDICTIONS True"):
        build_evaluator(Branches(), "tiny_test")


def test_nothing_to_train_on(toy_datasets, tmp_path):
    entry = ["tiny_test", "a", "b", "tiny_val"]
    overrides = tiny_overrides(toy_datasets, tmp_path)
    overrides += ["DATASETS.UNANNOTATED", str([entry]), "DATASETS.TRAIN", "('tiny_test',)"]
    cfg = load_config(str(config_dir() / "toy" / "spatialflow_toy.yaml"), overrides)
    with pytest.raises(ValueError, match="tiny_test has no ground truth"):
        prepare_datasets(cfg)


@pytest.fixture
def unannotated(tmp_path):
    """Function that registers a JSON as images like those of COCO; returns the name."""
    name = "evaluation_test_unannotated"

    def register(content, like="coco_2017_val_panoptic"):
        (tmp_path / "images").mkdir()
        for image in content.get("images", []):
            (tmp_path / "images" / image["file_name"]).touch()
        path = tmp_path / "images.json"
        path.write_text(json.dumps(content))
        register_unannotated(name, str(tmp_path / "images"), str(path), like)
        return name

    yield register
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def image(id_, file_name):
    return {"id": id_, "file_name": file_name, "height": 4, "width": 5}


def test_unannotated_dicts(unannotated, tmp_path):
    name = unannotated({"images": [image(8, "b.jpg"), image(3, "a.jpg")]})
    expected = [
        {"file_name": str(tmp_path / "images" / f), "image_id": i, "height": 4, "width": 5}
        for i, f in ((8, "b.jpg"), (3, "a.jpg"))
    ]
    assert load_dataset_dicts(name) == DatasetCatalog.get(name) == expected


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "has no list 'images'"),
        ({"images": []}, "'images' is empty"),
        ({"images": [image(1, "a.jpg"), image(1, "b.jpg")]}, "an image id twice"),
    ],
)
def test_unsound_images(unannotated, content, message):
    with pytest.raises(ValueError, match=message):
        load_dataset_dicts(unannotated(content))


def test_missing_image(unannotated, tmp_path):
    name = unannotated({"images": [image(1, "a.jpg")]})
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="Image missing in .*: a.jpg"):
        load_dataset_dicts(name)


def test_unknown_classes(unannotated):
    with pytest.raises(ValueError, match="Dataset nowhere is not registered"):
        unannotated({"images": [image(1, "a.jpg")]}, like="nowhere")


@pytest.fixture
def cityscapes_test(tmp_path):
    """The folder of predictions on Cityscapes images that are all right."""
    root = tmp_path / "cityscapes"
    write_tree(root)
    convert_cityscapes(str(root), ["val"], 1)
    gt = root / "gtFine" / "cityscapes_panoptic_val"
    builtin = MetadataCatalog.get("cityscapes_fine_panoptic_val").as_dict()
    names = truth_name, name = "evaluation_test_truth", "evaluation_test_cityscapes_test"
    MetadataCatalog.get(truth_name).set(
        **builtin | {"name": truth_name, "panoptic_root": str(gt), "panoptic_json": f"{gt}.json"}
    )
    register_unannotated(
        name, str(root / "leftImg8bit" / "val"), f"{gt}.json", "cityscapes_fine_panoptic_val"
    )
    folder = tmp_path / "inference"
    truth, inputs = PanopticGroundTruth(truth_name), inputs_of(truth_name)
    outputs = [perfect_output(truth, i["image_id"]) for i in inputs]
    evaluate(build_evaluator(Branches(), name, str(folder), str(folder)), inputs, outputs)
    yield root, folder
    DatasetCatalog.remove(name)
    for registered in names:
        MetadataCatalog.remove(registered)


def submit_cityscapes(folder, task, out):
    main(["cityscapes", str(folder), "--task", task, "--output-dir", str(out), "--workers", "1"])
    return zipfile.ZipFile(out / f"cityscapes_{task}_test.zip")


def truth_of(root, image_id, kind):
    city = image_id.split("_")[0]
    path = root / "gtFine" / "val" / city / f"{image_id}_gtFine_{kind}.png"
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_cityscapes_semantic(cityscapes_test, tmp_path):
    root, folder = cityscapes_test
    with submit_cityscapes(folder, "semantic", tmp_path) as archive:
        assert sorted(archive.namelist()) == sorted(f"{i}_pred.png" for i in IDS)
        for image_id in IDS:
            label_ids, truth = (
                decoded(archive.read(f"{image_id}_pred.png")),
                truth_of(root, image_id, "labelIds"),
            )
            annotated = truth >= 7
            assert (label_ids[annotated] == truth[annotated]).all()


def test_cityscapes_instance(cityscapes_test, tmp_path):
    root, folder = cityscapes_test
    with submit_cityscapes(folder, "instance", tmp_path) as archive:
        archive.extractall(tmp_path / "unpacked")

    class Arguments:
        predictionPath = str(tmp_path / "unpacked")

    for image_id in IDS:
        truth = truth_of(root, image_id, "instanceIds")
        read = readPredInfo(str(tmp_path / "unpacked" / f"{image_id}_pred.txt"), Arguments)
        assert [info["labelID"] for info in read.values()] == [24, 26, 26]
        assert all(0.5 <= info["conf"] <= 0.9 for info in read.values())
        for path, id_ in zip(read, (24000, 26000, 26001), strict=True):
            assert ((cv2.imread(path, cv2.IMREAD_UNCHANGED) > 0) == (truth == id_)).all()


def test_cityscapes_panoptic(cityscapes_test, tmp_path):
    _, folder = cityscapes_test
    with submit_cityscapes(folder, "panoptic", tmp_path) as archive:
        results = json.loads(archive.read("cityscapes_panoptic_test.json"))
        assert sorted(a["image_id"] for a in results["annotations"]) == sorted(IDS)
        for annotation in results["annotations"]:
            png = archive.read(f"cityscapes_panoptic_test/{annotation['file_name']}")
            assert decoded(png).shape == (*SIZE, 3)
        assert {s["category_id"] for s in results["annotations"][0]["segments_info"]} == {
            *(7, 23, 24, 26)
        }


def test_other_datasets_are_not_for_cityscapes(evaluated, tmp_path):
    with pytest.raises(SystemExit, match="do not include the things"):
        submit_cityscapes(evaluated, "semantic", tmp_path)
