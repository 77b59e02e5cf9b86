"""The toy model that comes with the project: every file gives what the model itself gives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import spatialflow_runtime
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from exported import agreement
from PIL import Image
from predict_runs import Inline
from spatialflow_runtime import Metadata, PanopticModel
from spatialflow_runtime.__main__ import main as runtime_main

from spatialflow.cli import run_command
from spatialflow.data import prepare_datasets
from spatialflow.data.targets import read_panoptic_png
from spatialflow.evaluation import PanopticEvaluator, PanopticGroundTruth
from spatialflow.export.write import Options, trace_model, write
from spatialflow.inference.predictor import Predictor
from spatialflow.model_zoo import get_config
from spatialflow.saved.predictions import PanopticFolder, read_predictions_json
from spatialflow.tools import toy
from spatialflow.tools.executors import EXECUTORS

RUNTIMES = {"onnxruntime": ".onnx", "openvino": ".xml"}
SIZES = [(128, 160), (97, 131), (333, 211), (64, 500), (480, 640), (1, 1)]
VAL = 20
SAME = 0.9999


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    toy.generate(str(root), train=1, val=VAL)
    before = set(DatasetCatalog.list())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def predictor(data):
    cfg = get_config("toy/spatialflow_toy_lite0.yaml", trained=True)
    prepare_datasets(cfg, ("TEST",))
    return Predictor(cfg)


@pytest.fixture(scope="module")
def traced(predictor):
    return trace_model(predictor.model, predictor.cfg, predictor.categories)


@pytest.fixture(scope="module")
def files(traced, tmp_path_factory):
    """Path without ending of the model in all formats."""
    path = tmp_path_factory.mktemp("exported") / "toy"
    for name, ending in {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}.items():
        write(traced, path.with_suffix(ending), Options(format=name))
    return path


@pytest.fixture(scope="module", params=RUNTIMES)
def model(request, files):
    path = files.with_suffix(RUNTIMES[request.param])
    return PanopticModel(path, engine=request.param, threads=1)


def pictures(data):
    return sorted((data / "toy" / "val").glob("*.png"))


def picture(data, size=None, number=0):
    image = Image.open(pictures(data)[number]).convert("RGB")
    return np.asarray(image if size is None else image.resize(size[::-1]))


def assert_same(given, wanted):
    map_, segments = wanted["panoptic_seg"]
    assert given["panoptic_seg"][0].shape == tuple(map_.shape)
    assert given["panoptic_seg"][0].dtype == np.int32
    assert agreement((map_.numpy(), segments), given["panoptic_seg"]) >= SAME
    assert len(given["instances"]["scores"]) == len(wanted["instances"])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_maps_and_instances_are_those_of_the_model(model, predictor, data, size):
    image = picture(data, size)
    given, wanted = model(image, masks=True), predictor(image[:, :, ::-1])
    assert_same(given, wanted)
    found, instances = given["instances"], wanted["instances"]
    assert np.abs(found["pred_boxes"] - instances.pred_boxes.tensor.numpy()).max(initial=0) < 1e-2
    assert np.abs(found["scores"] - instances.scores.numpy()).max(initial=0) < 1e-4
    assert found["pred_classes"].tolist() == instances.pred_classes.tolist()
    masks = instances.pred_masks.numpy()
    assert np.count_nonzero(found["pred_masks"] != masks) <= (1 - SAME) * masks.size
    areas = {s["id"]: s["area"] for s in given["panoptic_seg"][1]}
    ids, counts = np.unique(given["panoptic_seg"][0], return_counts=True)
    assert areas == {i: n for i, n in zip(ids.tolist(), counts.tolist(), strict=True) if i}


@pytest.mark.parametrize("count", [0, 1, 100])
def test_any_number_of_detections(files, predictor, data, count, monkeypatch):
    image = picture(data)
    scores = np.append(predictor(image[:, :, ::-1])["instances"].scores.numpy(), 0)
    threshold = {0: 1.0, 1: float(scores[:2].mean()), 100: 1e-6}[count]
    monkeypatch.setattr(predictor.model.detector, "score_thresh", threshold)
    wanted = predictor(image[:, :, ::-1])
    assert len(wanted["instances"]) == count
    for engine, ending in RUNTIMES.items():
        settings = {"detection_thresh": threshold}
        path = files.with_suffix(ending)
        model = PanopticModel(path, engine=engine, threads=1, settings=settings)
        assert_same(model(image), wanted)


def test_thresholds_of_the_merge_without_exporting_again(files, predictor, data, monkeypatch):
    settings = {"score_thresh": 0.1, "overlap_thresh": 0.2, "stuff_area_limit": 2000}
    monkeypatch.setattr(predictor.model, "merge", replace(predictor.model.merge, **settings))
    model = PanopticModel(files.with_suffix(".onnx"), settings=settings)
    image = picture(data)
    assert_same(model(image), predictor(image[:, :, ::-1]))
    with pytest.raises(ValueError, match=r"no threshold 'nms'; it has detection_thresh, score_"):
        PanopticModel(files.with_suffix(".onnx"), settings={"nms": 0.1})


def test_pq_is_that_of_the_model(model, predictor, data):
    truth = PanopticGroundTruth("toy_panoptic_val")
    results = {}
    for name in ("eager", "exported"):
        evaluator = PanopticEvaluator(truth)
        for image_id, png in truth.png_names.items():
            image = np.asarray(Image.open(data / "toy" / "val" / png).convert("RGB"))
            if name == "eager":
                output = predictor.panoptic(image[:, :, ::-1])
            else:
                ids, segments = model(image)["panoptic_seg"]
                output = {"panoptic_seg": (torch.from_numpy(ids), segments)}
            evaluator.process([{"image_id": image_id}], [output])
        results[name] = evaluator.evaluate()["panoptic_seg"]["PQ"]
    assert results["exported"] == pytest.approx(results["eager"], abs=0.01)
    assert results["eager"] > 50


def test_8_bits_and_half_precision(traced, files, data, tmp_path):
    write(traced, tmp_path / "8.onnx", Options(calibration=pictures(data)[:2]))
    write(traced, tmp_path / "16.xml", Options(format="openvino", half=True))
    whole = files.with_suffix(".onnx").stat().st_size
    assert (tmp_path / "8.onnx").stat().st_size < 0.4 * whole
    assert (tmp_path / "16.bin").stat().st_size < 0.6 * files.with_suffix(".bin").stat().st_size
    assert "QuantizeLinear" in {n.op_type for n in onnx.load(tmp_path / "8.onnx").graph.node}
    plain, image = PanopticModel(files.with_suffix(".xml")), picture(data)
    wanted = plain(image)["panoptic_seg"]
    for name, engine in (("8.onnx", "onnxruntime"), ("8.onnx", "openvino"), ("16.xml", None)):
        model = PanopticModel(tmp_path / name, engine=engine, threads=1)
        assert model.metadata == plain.metadata
        assert agreement(wanted, model(image)["panoptic_seg"]) > 0.9


def test_grey_and_transparent_pictures(model, data):
    image = picture(data)
    grey = image[:, :, 0]
    of_grey = model(np.repeat(grey[:, :, None], 3, axis=2))["panoptic_seg"][0]
    assert np.array_equal(model(grey)["panoptic_seg"][0], of_grey)
    transparent = np.dstack([image, np.zeros_like(grey)])
    whole = model(image)["panoptic_seg"][0]
    assert np.array_equal(model(transparent)["panoptic_seg"][0], whole)
    assert np.array_equal(model(Image.fromarray(image))["panoptic_seg"][0], whole)
    with pytest.raises(TypeError, match="uint8 values 0 to 255, not float32"):
        model(image.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(H, W, 3\).*not \(3, 128, 160\)"):
        model(image.transpose(2, 0, 1))


def test_two_threads(model, data):
    images = [picture(data, size, i) for i, size in enumerate([None, (200, 90), None, (90, 200)])]
    alone = [model(image)["panoptic_seg"][0] for image in images]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda image: model(image)["panoptic_seg"][0], images * 3))
    for given, wanted in zip(together, alone * 3, strict=True):
        assert np.array_equal(given, wanted)


def test_large_pictures_are_refused_in_one_message(files):
    model = PanopticModel(files.with_suffix(".onnx"), max_pixels=10_000)
    with pytest.raises(ValueError, match="200x100 has 20000 pixels, more than 10000: make it"):
        model(np.zeros((100, 200, 3), np.uint8))


def test_metadata(files, predictor):
    read = [PanopticModel(files.with_suffix(ending)).metadata for ending in RUNTIMES.values()]
    assert read[0] == read[1]
    assert read[0].things[0] == {
        "id": predictor.categories.things[0].id,
        "name": "disk",
        "color": list(predictor.categories.things[0].color),
        "isthing": True,
    }
    assert [c["name"] for c in read[0].stuff] == [c.name for c in predictor.categories.stuff]
    size = predictor.cfg.INPUT
    assert read[0].resize == {
        "library": "pil",
        "shorter": size.MIN_SIZE_TEST,
        "longer": size.MAX_SIZE_TEST,
    }
    assert read[0].channels == predictor.cfg.INPUT.FORMAT
    assert read[0].pixel_mean == pytest.approx(predictor.cfg.MODEL.PIXEL_MEAN)
    assert list(read[0].settings) == [
        "detection_thresh",
        "score_thresh",
        "overlap_thresh",
        "stuff_area_limit",
        "box_fill_min_free",
    ]
    assert len(read[0].weights_sha256) == 64


def test_pt2(traced, files, data):
    with zipfile.ZipFile(files.with_suffix(".pt2")) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("extra/spatialflow"))
        metadata = Metadata(**json.loads(archive.read(name)))
    module = torch.export.load(files.with_suffix(".pt2")).module()
    padded = np.zeros((160, 192, 3), np.uint8)  # larger than the picture, as the program asks for
    padded[:128, :160] = picture(data)
    settings = torch.tensor(list(metadata.settings.values()))
    inputs = (torch.from_numpy(padded), *(torch.arange(n) for n in (128, 160, 200, 250)), settings)
    with torch.no_grad():
        given, wanted = module(*inputs), traced.graph(*inputs)
    assert int((wanted[1] > 0).sum()) > 1
    for one, other in zip(given, wanted, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-3)


ISOLATED = """
import sys, importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "detectron2", "spatialflow", "cv2"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import numpy as np
from PIL import Image
from spatialflow_runtime import PanopticModel
image = np.asarray(Image.open(sys.argv[3]).convert("RGB"))
for path in sys.argv[4:]:
    np.save(path + ".npy", PanopticModel(path)(image)["panoptic_seg"][0])
assert not {"torch", "detectron2", "cv2"} & set(sys.modules)
"""


def test_runtime__no_torch_and_no_detectron2__the_same_maps(files, data):
    folder = Path(spatialflow_runtime.__file__).parents[1]
    paths = [str(files.with_suffix(ending)) for ending in RUNTIMES.values()]
    command = [sys.executable, "-I", "-c", ISOLATED, folder, "--", pictures(data)[0], *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in paths:
        wanted = PanopticModel(path)(picture(data))["panoptic_seg"][0]
        assert np.array_equal(np.load(f"{path}.npy"), wanted)


def test_runtime_command(files, data, tmp_path, capsys):
    model, image = str(files.with_suffix(".onnx")), pictures(data)[1]
    arguments = [model, str(image), "--output", str(tmp_path), "--set", "score_thresh", "0.3"]
    assert runtime_main(arguments) == 0
    output = PanopticModel(model, settings={"score_thresh": 0.3})(picture(data, number=1))
    coded = np.asarray(Image.open(tmp_path / f"{image.stem}_ids.png")).astype(int)
    ids = coded @ [1, 256, 65536]
    assert np.array_equal(ids, output["panoptic_seg"][0])
    segments = json.loads((tmp_path / f"{image.stem}_segments.json").read_text())
    assert [s["id"] for s in segments] == [s["id"] for s in output["panoptic_seg"][1]]
    drawn = Image.open(tmp_path / f"{image.stem}_panoptic.png")
    assert drawn.size == Image.open(image).size
    assert runtime_main([model, "none.jpg", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The C++ program."""
    if not shutil.which("cmake") or not shutil.which("g++"):
        pytest.skip("no cmake or no g++")
    source = Path(spatialflow_runtime.__file__).parents[1] / "cpp"
    if not source.is_dir():
        pytest.skip("the source of the C++ program is in the repository alone")
    build = tmp_path_factory.mktemp("build")
    found = Path(openvino.__file__).parent / "cmake"
    commands = (["-S", source, "-B", build, f"-DOpenVINO_DIR={found}"], ["--build", build])
    for arguments in commands:
        done = subprocess.run(["cmake", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "panoptic"


def test_cpp_program(program, files, data, tmp_path):
    model = PanopticModel(files.with_suffix(".xml"))
    for size in ((128, 160), (333, 211), (97, 300)):
        image = picture(data, size, 2)
        Image.fromarray(image).save(tmp_path / "picture.ppm")
        command = [program, files.with_suffix(".xml"), tmp_path / "picture.ppm", tmp_path / "out"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        output = model(image)
        ids = np.asarray(Image.open(tmp_path / "out.png")).astype(int) @ [1, 256, 65536]
        assert (ids == output["panoptic_seg"][0]).mean() >= SAME
        segments = json.loads((tmp_path / "out.json").read_text())
        wanted = model.segments(output)
        keys = ("id", "isthing", "category_id", "category")
        assert [{k: s[k] for k in keys} for s in segments] == [
            {k: s[k] for k in keys} for s in wanted
        ]
    (tmp_path / "picture.ppm").write_text("P5")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ")


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_predict_by_the_file_gives_its_own_maps(ending, files, data, tmp_path, monkeypatch):
    monkeypatch.setitem(EXECUTORS, "inline", Inline)
    path = files.with_suffix(ending)
    model = PanopticModel(path, threads=1)
    words = ["--input", data / "toy/val", "--output", tmp_path / "out", "--model", path]
    words += ["--executor", "inline", "--shard-size", 9]
    assert run_command("predict", list(map(str, words))) == 0
    predictions = PanopticFolder.of_evaluation(str(tmp_path / "out"))
    annotations = read_predictions_json(predictions.json)["annotations"]
    assert len(annotations) == VAL
    for annotation in annotations:
        image = np.asarray(Image.open(data / "toy/val" / annotation["image_id"]).convert("RGB"))
        ids, segments = model(image)["panoptic_seg"]
        assert np.array_equal(read_panoptic_png(predictions.png(annotation)), ids)
        assert len(annotation["segments_info"]) == len(segments)
