"""The runtime without a model: headers of files, the resize of the training pipeline."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from detectron2.data import transforms as T
from spatialflow_runtime import FORMAT_VERSION, Metadata, ModelFileError, PanopticModel
from spatialflow_runtime.metadata import METADATA_KEY, parse_metadata
from spatialflow_runtime.model import at_least
from spatialflow_runtime.model_file import onnx_metadata
from spatialflow_runtime.resize import input_size, resize

from spatialflow.data.mapper import RESIZE_WITH

METADATA = Metadata(
    format_version=FORMAT_VERSION,
    stop="panoptic",
    things=[],
    stuff=[],
    channels="BGR",
    pixel_mean=[0.0] * 3,
    pixel_std=[1.0] * 3,
    resize={},
    size_divisibility=32,
    settings={},
    max_detections=100,
    weights_sha256="",
    model="SpatialFlow",
    made_by="spatialflow 0.1.0",
)


def write_onnx(path, metadata):
    """A file with one node and this text, if any, as its metadata."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out]))
    if metadata is not None:
        onnx.helper.set_model_props(model, {METADATA_KEY: metadata, "other": "text"})
    onnx.save(model, path)
    return path


def test_metadata_of_an_onnx_file_is_read_without_the_package(tmp_path):
    text = METADATA.as_json() + " " * 300  # a length of two bytes
    path = write_onnx(tmp_path / "m.onnx", text)
    assert onnx_metadata(path) == {METADATA_KEY: text, "other": "text"}
    assert parse_metadata(text, "m.onnx") == METADATA


def of_version(version):
    return json.dumps(json.loads(METADATA.as_json()) | {"format_version": version})


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "was not made by `spatialflow export`"),
        ("{", "The header of .* is damaged; export the model again"),
        ("[]", "The header of .* is damaged"),
        (of_version(99), "has format version 99, and this spatialflow_runtime reads 1; export"),
        ('{"format_version": 1}', "damaged, it lacks channels, made_by, max_detections"),
    ],
)
def test_headers(text, message, tmp_path):
    path = write_onnx(tmp_path / "m.onnx", text)
    with pytest.raises(ModelFileError, match=message) as error:
        PanopticModel(path, engine="onnxruntime")
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("keep", [0, 1, 7, 60])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_incomplete_files(keep, engine, tmp_path):
    path = write_onnx(tmp_path / "m.onnx", METADATA.as_json())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFileError) as error:
        PanopticModel(path, engine=engine)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_files_of_another_kind(ending, tmp_path):
    path = tmp_path / f"m{ending}"
    path.write_bytes(b"\xff\xd8 a picture, no model" * 9)
    with pytest.raises(ModelFileError, match="damaged|cannot be loaded"):
        PanopticModel(path)


def test_arguments(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", METADATA.as_json())
    with pytest.raises(FileNotFoundError, match="none.onnx not found"):
        PanopticModel("none.onnx")
    with pytest.raises(ValueError, match="a model ends in .onnx or .xml"):
        PanopticModel(tmp_path / "m.pt2")
    with pytest.raises(ValueError, match="run by openvino or onnxruntime, not by 'tensorrt'"):
        PanopticModel(path, engine="tensorrt")
    with pytest.raises(ValueError, match="precision is one of float32, bfloat16"):
        PanopticModel(path, precision="int4")
    with pytest.raises(ValueError, match="bfloat16 is for engine='openvino'"):
        PanopticModel(path, engine="onnxruntime", precision="bfloat16")


SIZES = [(1, 1), (3, 200), (97, 131), (240, 320), (333, 211), (480, 640), (1000, 90)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("library", RESIZE_WITH)
@pytest.mark.parametrize("rule", [(128, 160), (480, 1000)], ids=str)
def test_resize_is_that_of_the_training_pipeline(size, library, rule):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    wanted = T.AugInput(image.copy())
    T.AugmentationList([RESIZE_WITH[library]([rule[0]] * 2, rule[1], "choice")])(wanted)
    given = resize(image, {"library": library, "shorter": rule[0], "longer": rule[1]})
    assert given.shape == wanted.image.shape
    difference = np.abs(given.astype(int) - wanted.image)
    assert difference.max() <= (0 if library == "pil" else 1)
    assert (difference > 0).mean() < 0.05


def test_resize__fixed_size_and_none():
    image = np.zeros((30, 40, 3), np.uint8)
    assert resize(image, {"library": "pil", "height": 64, "width": 32}).shape == (64, 32, 3)
    assert resize(image, {}) is not None and input_size(30, 40, {}) == (30, 40)


def test_thresholds_are_rounded_up():
    given = at_least([0.37, 0.5, 4900.0])
    assert given.dtype == np.float32 and given[1:].tolist() == [0.5, 4900]
    assert float(given[0]) >= 0.37 > float(np.nextafter(given[0], np.float32(0)))
