"""Single pictures through a trained model, and the command around it."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from panopticapi.utils import rgb2id
from PIL import Image
from tiny_runs import CONFIG, tiny_config, tiny_overrides

from spatialflow import Predictor
from spatialflow.config import load_config
from spatialflow.data import build_test_loader

COMBINE = "MODEL.PANOPTIC_FPN.COMBINE.ENABLED"
DEMO = str(Path(__file__).resolve().parents[2] / "demo.py")


@pytest.fixture(scope="module")
def overrides(toy_datasets, tmp_path_factory):
    """Overrides of the toy config for a model of random weights, which are in a file."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    weights = folder / "weights.pth"
    torch.save({"model": build_model(tiny_config(toy_datasets, folder)).state_dict()}, weights)
    return [*tiny_overrides(toy_datasets, folder), "MODEL.WEIGHTS", str(weights)]


@pytest.fixture(scope="module")
def predictor(overrides):
    return Predictor(load_config(str(CONFIG), overrides))


@pytest.fixture(scope="module")
def image(toy_datasets):
    return cv2.imread(str(toy_datasets / "toy" / "val" / "00000.png"))


def same(one, other):
    """Whether two outputs have the same map and the same segments."""
    (map1, segments1), (map2, segments2) = one["panoptic_seg"], other["panoptic_seg"]
    return torch.equal(map1, map2) and segments1 == segments2


@pytest.mark.parametrize("library", ["pil", "cv2"])
def test_a_picture_gives_what_evaluation_sees(overrides, image, library):
    # Another test size, so that there is something to resize.
    overrides = [*overrides, "INPUT.RESIZE_WITH", library, "INPUT.MIN_SIZE_TEST", "96"]
    predictor = Predictor(load_config(str(CONFIG), overrides))
    sample = next(iter(build_test_loader(predictor.cfg, "tiny_val")))
    with torch.no_grad():
        expected = predictor.model(sample)[0]
    output = predictor(image)
    assert same(output, expected)
    assert torch.equal(output["sem_seg"], expected["sem_seg"])
    assert output["panoptic_seg"][0].shape == image.shape[:2]


def test_masks_are_a_bool_tensor(predictor, image):
    instances = predictor(image)["instances"]
    assert type(instances.pred_masks) is torch.Tensor and instances.pred_masks.dtype == torch.bool
    assert instances.pred_masks.shape == (len(instances), *image.shape[:2])


def test_panoptic_maps_alone(overrides, predictor, image):
    alone, expected = predictor.panoptic(image), predictor(image)
    assert alone.keys() == {"panoptic_seg"} and same(alone, expected)
    boxes = Predictor(load_config(str(CONFIG), [*overrides, COMBINE, "False"]))
    assert boxes.panoptic(image).keys() == {"instances", "sem_seg"}


def test_rgb_models_get_rgb(overrides, predictor, image):
    rgb = Predictor(load_config(str(CONFIG), [*overrides, "INPUT.FORMAT", "RGB"]))
    assert same(rgb(image[:, :, ::-1]), predictor(image))
    assert not torch.equal(rgb(image)["sem_seg"], predictor(image)["sem_seg"])


def test_config_file_and_weights_are_enough(overrides, predictor, image):
    settings = overrides[:-2]
    cfg = load_config(str(CONFIG), settings)
    path = Path(overrides[-1]).with_name("config.yaml")
    path.write_text(cfg.dump())
    assert same(Predictor(path, overrides[-1])(image), predictor(image))


def test_grey_and_transparent_pictures_are_converted(predictor, image):
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    expected = predictor(np.repeat(grey[:, :, None], 3, axis=2))
    assert same(predictor(grey), expected)
    assert same(predictor(grey[:, :, None]), expected)
    assert same(predictor(np.dstack([image, grey])), predictor(image))


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError, "uint8.*float32"),
        ("picture.jpg", TypeError, "uint8.*str"),
        (np.zeros((8, 8, 2), np.uint8), ValueError, r"\(8, 8, 2\)"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r"\(0, 8, 3\)"),
    ],
)
def test_what_is_no_picture_is_refused(predictor, picture, error, message):
    with pytest.raises(error, match=message):
        predictor(picture)


def test_segments_describe_the_map(predictor, image):
    output = predictor(image)
    ids = output["panoptic_seg"][0].numpy()
    segments = predictor.segments(output)
    assert {s["isthing"] for s in segments} == {True, False}
    assert {s["id"] for s in segments} == set(np.unique(ids)) - {0}
    names = {1: "disk", 2: "box", 3: "triangle", 5: "ring"}
    names |= {11: "stripes", 12: "checker", 14: "dots", 15: "noise"}
    for s in segments:
        assert s["category"] == names[s["category_id"]]
        assert s["isthing"] == (s["category_id"] < 10) == ("score" in s)
        rows, columns = np.nonzero(ids == s["id"])
        assert s["area"] == len(rows)
        x, y, width, height = s["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())


def test_drawing_changes_the_picture_and_not_the_output(predictor, image):
    output = predictor(image)
    before = repr(output["panoptic_seg"][1])
    drawn = predictor.draw(image, output)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (drawn != image).any()
    assert repr(output["panoptic_seg"][1]) == before
    for name in (
        "panoptic_seg",
        "instances",
    ):  # a model that does not merge, and one of stuff alone
        del output[name]
        drawn = predictor.draw(image, output)
        assert drawn.shape == image.shape and (drawn != image).any()


def test_instances_of_a_model_without_merge_lie_over_each_other_by_score(predictor):
    image = np.zeros((40, 60, 3), np.uint8)
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 5:35, 5:40], masks[1, 5:35, 20:55] = True, True
    boxes = Boxes(torch.tensor([[5.0, 5, 40, 35], [20, 5, 55, 35]]))
    fields = {"scores": torch.tensor([0.9, 0.5]), "pred_classes": torch.tensor([0, 1])}
    found = Instances((40, 60), pred_boxes=boxes, pred_masks=masks, **fields)
    drawn = predictor.draw(image, {"instances": found})
    assert (drawn[7, 10] == drawn[7, 37]).all() and (drawn[7, 37] != drawn[7, 50]).any()
    found.remove("pred_masks")
    frames = predictor.draw(image, {"instances": found})
    assert frames[10, 5].any() and not frames[12, 12].any()  # a frame, nothing within


def test_without_the_dataset_classes_are_numbered(overrides, predictor, image, tmp_path):
    gone = [text.replace("tiny_", "gone_") for text in tiny_overrides(tmp_path, tmp_path)]
    counts = ["MODEL.RETINANET.NUM_CLASSES", "4", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"]
    alone = Predictor(load_config(str(CONFIG), [*gone, *counts, "MODEL.WEIGHTS", overrides[-1]]))
    output = alone(image)
    assert same(output, predictor(image))
    named, numbered = predictor.segments(output), alone.segments(output)
    assert [s["area"] for s in named] == [s["area"] for s in numbered]
    assert all(s["category"].split()[0] in ("thing", "stuff") for s in numbered)
    assert alone.draw(image, output).shape == image.shape
    with pytest.raises(FileNotFoundError, match="gone_train"):
        Predictor(load_config(str(CONFIG), gone))


def test_weights_are_needed(overrides):
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        Predictor(load_config(str(CONFIG), overrides[:-2]))


def demo(monkeypatch, *arguments):
    """Exit code of demo.py, run in this process."""
    monkeypatch.setattr(sys, "argv", [DEMO, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(DEMO, run_name="__main__")
    return stop.value.code


def test_demo_writes_pictures_segments_and_maps(
    monkeypatch, overrides, predictor, toy_datasets, tmp_path, capsys
):
    folder = tmp_path / "pictures"
    shutil.copytree(toy_datasets / "toy" / "val", folder)
    (folder / "notes.txt").write_text("no picture")
    other = tmp_path / "other" / "00000.png"
    other.parent.mkdir()
    shutil.copy(folder / "00001.png", other)
    output = tmp_path / "results"
    inputs = ["--input", folder, tmp_path / "oth*" / "*.png", folder / "00000.png"]
    arguments = ["--output", output, "--config-file", CONFIG, "--json", "--opts", *overrides]
    assert demo(monkeypatch, *inputs, *arguments) == 0
    names = {"00000", "00001", "00002", "00000_2"}
    endings = ("_panoptic.png", "_ids.png", "_segments.json")
    assert {p.name for p in output.iterdir()} == {n + e for n in names for e in endings}
    expected = predictor(cv2.imread(str(other)))
    ids = rgb2id(cv2.imread(str(output / "00000_2_ids.png"))[:, :, ::-1])
    np.testing.assert_array_equal(ids, expected["panoptic_seg"][0].numpy())
    segments = json.loads((output / "00000_2_segments.json").read_text())
    assert segments == predictor.segments(expected)
    assert cv2.imread(str(output / "00000_2_panoptic.png")).shape == (128, 160, 3)


def test_demo_goes_on_after_an_unreadable_picture(
    monkeypatch, overrides, toy_datasets, tmp_path, capsys
):
    whole = (toy_datasets / "toy" / "val" / "00000.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole)
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.jpg").write_text("no picture")
    arguments = ["--output", tmp_path / "out", "--config-file", CONFIG, "--opts", *overrides]
    assert demo(monkeypatch, "--input", tmp_path, *arguments) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b_panoptic.png"]
    printed = capsys.readouterr()
    for name in ("a.png", "c.jpg"):
        assert f"{tmp_path / name} cannot be read" in printed.err
    assert "1 of 3 images" in printed.out
    assert "Traceback" not in printed.err


def test_demo_refuses_pictures_of_more_than_8_bits(monkeypatch, overrides, tmp_path, capsys):
    Image.fromarray(np.full((40, 50), 300, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.ones((40, 50), np.float32)).save(tmp_path / "float.tiff")
    arguments = ["--output", tmp_path / "out", "--config-file", CONFIG, "--opts", *overrides]
    assert demo(monkeypatch, "--input", tmp_path, *arguments) == 1
    printed = capsys.readouterr()
    for name in ("deep.png", "float.tiff"):
        assert name in printed.err
    assert printed.err.count("convert it to 8 bits") == 2 and "0 of 2 images" in printed.out


def test_demo_segments_pictures_of_one_pixel_a_side(monkeypatch, overrides, tmp_path):
    sizes = {"wide": (1, 5000), "high": (5000, 1), "dot": (1, 1)}
    for name, size in sizes.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((*size, 3), 90, np.uint8))
    arguments = ["--output", tmp_path / "out", "--config-file", CONFIG, "--json", "--opts"]
    small = ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128"]
    assert demo(monkeypatch, "--input", tmp_path, *arguments, *overrides, *small) == 0
    for name, size in sizes.items():
        assert cv2.imread(str(tmp_path / "out" / f"{name}_ids.png")).shape[:2] == size


def test_demo_goes_on_after_a_picture_that_fails(
    monkeypatch, overrides, toy_datasets, tmp_path, capsys
):
    segment_picture = Predictor.panoptic

    def fail_on_the_dark_one(predictor, image):
        if not image.any():
            raise RuntimeError("not enough memory")
        return segment_picture(predictor, image)

    monkeypatch.setattr(Predictor, "panoptic", fail_on_the_dark_one)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    shutil.copy(toy_datasets / "toy" / "val" / "00000.png", tmp_path / "b.png")
    arguments = ["--output", tmp_path / "out", "--config-file", CONFIG, "--opts", *overrides]
    assert demo(monkeypatch, "--input", tmp_path, *arguments) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b_panoptic.png"]
    printed = capsys.readouterr()
    assert f"{tmp_path / 'a.png'} cannot be segmented: RuntimeError: not enough" in printed.err
    assert "1 of 2 images" in printed.out


@pytest.mark.parametrize("given", [".", "*.png", "**/*.png"])
def test_demo_does_not_take_results_for_pictures(monkeypatch, overrides, tmp_path, given):
    """A folder or glob that finds images in the folder of the results is refused before any work"""
    for name in ("x.png", "x_panoptic.png"):
        (tmp_path / name).write_text("mine")
    monkeypatch.setattr(Predictor, "__init__", None)  # nothing may be built
    arguments = ["--output", f"{tmp_path}/.", "--config-file", CONFIG, "--opts", *overrides]
    code = demo(monkeypatch, "--input", tmp_path / given, *arguments)
    assert code.startswith("error: --input") and "give another --output" in code
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "x.png": "mine",
        "x_panoptic.png": "mine",
    }


@pytest.mark.parametrize("ending, options", [("_panoptic.png", []), ("_ids.png", ["--json"])])
def test_demo_writes_over_no_input(monkeypatch, overrides, tmp_path, ending, options):
    files = [tmp_path / "x.png", tmp_path / f"x{ending}"]
    for path in files:
        path.write_text("mine")
    monkeypatch.setattr(Predictor, "__init__", None)
    arguments = ["--output", tmp_path, "--config-file", CONFIG, *options, "--opts", *overrides]
    code = demo(monkeypatch, "--input", *files, *arguments)
    assert f"x{ending} would be written over the input" in code
    assert [path.read_text() for path in files] == ["mine", "mine"]


def test_demo_puts_a_result_beside_a_picture_that_is_named(
    monkeypatch, overrides, toy_datasets, tmp_path
):
    shutil.copy(toy_datasets / "toy" / "val" / "00000.png", tmp_path / "x.png")
    arguments = ["--output", tmp_path, "--config-file", CONFIG, "--opts", *overrides]
    for _ in range(2):
        assert demo(monkeypatch, "--input", tmp_path / "x.png", *arguments) == 0
        assert {p.name for p in tmp_path.iterdir()} == {"x.png", "x_panoptic.png"}


@pytest.mark.parametrize("name", ["nowhere.png", "nowhere/*.png"])
def test_demo_names_an_input_that_is_not_there(monkeypatch, overrides, tmp_path, name):
    arguments = ["--output", tmp_path / "out", "--config-file", CONFIG, "--opts", *overrides]
    code = demo(monkeypatch, "--input", tmp_path / name, *arguments)
    assert str(code).startswith("error: ") and name in code


def test_demo_without_segments_says_so(monkeypatch, overrides, toy_datasets, tmp_path):
    picture = toy_datasets / "toy" / "val" / "00000.png"
    arguments = ["--input", picture, "--output", tmp_path, "--config-file", CONFIG, "--json"]
    instances_only = ["MODEL.PANOPTIC_FPN.COMBINE.ENABLED", "False"]
    code = demo(monkeypatch, *arguments, "--opts", *overrides, *instances_only)
    assert code.startswith("error: --json")
    assert (tmp_path / "00000_panoptic.png").exists()
