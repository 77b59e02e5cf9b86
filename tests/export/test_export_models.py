"""Which models can be exported, up to which step, and what the others are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from builders import tiny_model, tiny_subnets
from exported import agreement, eager, exported, noise, toy_config
from small_rcnn import rcnn_config, small_rcnn
from spatialflow_runtime import ModelFileError, PanopticModel
from spatialflow_runtime.resize import resize

from spatialflow.cli import run_command
from spatialflow.errors import UsageError, UserError
from spatialflow.export.graph import build_graph
from spatialflow.export.onnx_file import OPSET
from spatialflow.export.write import FORMATS, Options, check
from spatialflow.modeling.adapters import as_panoptic_model
from spatialflow.modeling.panoptic import HeuristicMerge

IMAGE = (120, 180)


def tiny(deform_on=(), **kwargs):
    """A tiny SpatialFlow that finds things, of which a dozen come to the map."""
    torch.manual_seed(0)
    model = tiny_model(merge=HeuristicMerge(stuff_area_limit=40), **kwargs).eval()
    if deform_on:
        model.subnets = tiny_subnets(deform_on=deform_on).eval()
    with torch.no_grad():
        logits = torch.cat(model.dense(torch.randn(1, 3, 128, 160)).predictions.logits, dim=1)
        model.detector.cls_score.weight.mul_(2 / logits.std())
        model.detector.cls_score.bias.fill_(-2)
    scores = eager(model, noise(IMAGE))["instances"].scores
    if model.merge is not None:
        model.merge = replace(model.merge, score_thresh=float(scores[:12].min()))
    return model


def panoptic_fpn():
    cfg = rcnn_config(meta_arch="PanopticFPN")
    return as_panoptic_model(small_rcnn(cfg), cfg).eval()


@pytest.mark.parametrize("switch", ["plain", "deformable", "nearest", "no fill"])
def test_graph__spatialflow__the_map_of_the_model(switch):
    """The module that is traced, itself."""
    model = tiny(deform_on=("stuff", "thing") if switch == "deformable" else ())
    if switch == "nearest":
        model.stuff_head.resize = "nearest"
    elif switch == "no fill":
        model.merge = replace(model.merge, box_fill_min_free=None)
    assert_graph_is_the_model(model)


def test_graph__panoptic_fpn__the_map_of_the_model():
    assert_graph_is_the_model(panoptic_fpn())


def assert_graph_is_the_model(model):
    graph = build_graph(model, "BGR", "panoptic")
    image = noise(IMAGE)
    height, width = 128, 160
    cfg = toy_config()
    cfg.INPUT.FIXED_SIZE = (height, width)
    wanted = eager(model, image, cfg)
    resized = resize(image, {"library": "pil", "height": height, "width": width})
    sides = (torch.arange(n) for n in (height, width, *IMAGE))
    settings = torch.tensor(list(graph.settings.values()))
    with torch.no_grad():
        outputs = graph(torch.from_numpy(np.array(resized)), *sides, settings)
    given = dict(zip(graph.output_names, outputs, strict=True))
    map_, segments = wanted["panoptic_seg"]
    assert len(segments) > 2 and any(s["isthing"] for s in segments)
    assert int((given["segment_ids"] > 0).sum()) == len(segments)
    assert (given["panoptic"] == map_).float().mean() >= 0.9999
    found = given["scores"] > 0
    assert int(found.sum()) == len(wanted["instances"])
    boxes = wanted["instances"].pred_boxes.tensor
    assert torch.allclose(given["boxes"][found], boxes, atol=1e-3)


def test_onnx__panoptic_fpn(tmp_path):
    model = panoptic_fpn()
    path = exported(model, tmp_path / "fpn.onnx")
    for engine in ("onnxruntime", "openvino"):
        runtime = PanopticModel(path, engine=engine, threads=1)
        assert list(runtime.metadata.settings)[-1] == "stuff_area_limit"  # it fills no boxes
        for size in (IMAGE, (90, 333)):
            given, wanted = runtime(noise(size)), eager(model, noise(size))
            ids, segments = wanted["panoptic_seg"]
            assert agreement((ids.numpy(), segments), given["panoptic_seg"]) >= 0.9999
            assert len(given["instances"]["scores"]) == len(wanted["instances"])


def test_onnx__stop_masks__deformable_convolutions(tmp_path):
    model = tiny(deform_on=("thing",))
    path = exported(model, tmp_path / "masks.onnx", stop="masks")
    used = {node.op_type for node in onnx.load(path).graph.node}
    assert "DeformConv" in used and not {"Loop", "GridSample"} & used
    runtime = PanopticModel(path, engine="onnxruntime", threads=1)
    given, wanted = runtime(noise(IMAGE), masks=True), eager(model, noise(IMAGE))
    assert set(given) == {"instances", "sem_seg"}
    assert np.abs(given["sem_seg"] - wanted["sem_seg"].numpy()).max() < 1e-3
    same = given["instances"]["pred_masks"] == wanted["instances"].pred_masks.numpy()
    assert same.mean() >= 0.9999


def test_onnx__stop_dense__plain_operators_for_tensorrt(tmp_path):
    model = tiny()
    path = exported(model, tmp_path / "dense.onnx", stop="dense")
    loaded = onnx.load(path)
    used = {node.op_type for node in loaded.graph.node}
    assert not used & {"Loop", "NonMaxSuppression", "RoiAlign", "NonZero", "TopK", "GridSample"}
    assert loaded.opset_import[0].version == OPSET
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert {"features_thing_0", "predictions_logits_4", "stuff"} <= set(names)
    images = torch.randn(1, 3, 192, 160)
    given = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
    with torch.no_grad():
        wanted = model.dense(images)
    pairs = {"predictions_logits_4": wanted.predictions.logits[4], "stuff": wanted.stuff}
    for name, tensor in pairs.items():
        assert np.abs(given[name] - tensor.numpy()).max() < 1e-3, name
    with pytest.raises(ModelFileError, match="dense.onnx ends before boxes are chosen"):
        PanopticModel(path)


def test_models_that_cannot_be_exported():
    cfg = rcnn_config(**{"heads": "CascadeROIHeads", "meta_arch": "PanopticFPN"})
    cascade = as_panoptic_model(small_rcnn(cfg), cfg).eval()
    with pytest.raises(UserError, match="CascadeROIHeads cannot be exported: its box head has"):
        build_graph(cascade, "BGR", "panoptic")
    cfg = rcnn_config()
    with pytest.raises(UserError, match="RCNNModel cannot be exported: of the meta-arch.*Spatial"):
        build_graph(as_panoptic_model(small_rcnn(cfg), cfg).eval(), "BGR", "panoptic")
    model = tiny()
    model.backbone.size_divisibility = model.size_divisibility = 8
    with pytest.raises(UserError, match="padded to multiples of 8 pixels"):
        build_graph(model, "BGR", "panoptic")
    model = tiny()
    model.merge = None
    with pytest.raises(UserError, match="The merge of SpatialFlow cannot.*--stop masks"):
        build_graph(model, "BGR", "panoptic")
    with pytest.raises(UserError, match="Only models of boxes, masks and stuff"):
        build_graph(tiny(stuff=False), "BGR", "masks")


@pytest.mark.parametrize(
    "options, file, message",
    [
        ({}, "m.xml", "the format onnx ends in .onnx"),
        ({"half": True}, "m.onnx", "--half is for --format openvino"),
        ({"compile": True}, "m.onnx", "--compile is for --format pt2"),
        ({"format": "pt2", "calibration": ["x"]}, "m.pt2", "--calibrate is for"),
    ],
)
def test_options_that_do_not_fit_together(options, file, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        check(tmp_path / file, Options(**options))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("spatialflow.export.write.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx, onnxscript: pip install 'spatialflow\[exp"):
        check(tmp_path / "m.onnx", Options())
    assert set(FORMATS) == {"onnx", "openvino", "pt2"}


def test_command__views__refused(tmp_path, capsys, toy_datasets, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_datasets))
    arguments = ["--config-file", "configs/toy/spatialflow_toy_lite0.yaml"]
    arguments += ["--output", str(tmp_path / "m.onnx"), "--opts", "TEST.AUG.ENABLED", "True"]
    with pytest.raises(SystemExit) as stopped:
        run_command("export", arguments)
    assert "One model with one view can be exported" in str(stopped.value)
