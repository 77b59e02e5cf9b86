"""Checkpoints: what fits is loaded, what does not is said, a kill while writing loses nothing."""

import logging
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from spatialflow.checkpoint import SafeCheckpointer


class Model(nn.Module):
    """The names that matter: a backbone and layers behind it."""

    def __init__(self, classes=3, width=4):
        super().__init__()
        self.backbone = nn.ModuleDict(
            {
                "bottom_up": nn.ModuleDict(
                    {"stem": nn.ModuleDict({"conv1": nn.Conv2d(3, width, 1, bias=False)})}
                ),
                "lateral": nn.Conv2d(width, 4, 1),
            }
        )
        self.cls_score = nn.Linear(4, classes)


BACKBONE_KEY = "backbone.bottom_up.stem.conv1.weight"


@pytest.fixture
def weights(tmp_path):
    """Weights of all of a Model with three classes."""
    path = tmp_path / "weights.pth"
    torch.save({"model": Model().state_dict()}, path)
    return str(path)


def stored(path):
    return torch.load(path, weights_only=True)["model"]


def test_everything_is_loaded(weights):
    model = Model()
    SafeCheckpointer(model, complete=True).load(weights)
    for key, value in stored(weights).items():
        assert torch.equal(model.state_dict()[key], value)


def test_other_class_count_names_keys_shapes_and_config(weights):
    with pytest.raises(ValueError) as error:
        SafeCheckpointer(Model(classes=5)).load(weights)
    for part in (
        weights,
        "cls_score.weight: (3, 4) in the file, (5, 4) in the model",
        "cls_score.bias",
        "MODEL.RETINANET.NUM_CLASSES",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    ):
        assert part in str(error.value)


def test_layers_that_start_afresh_are_left_out_unless_training_resumes(weights, tmp_path):
    model = Model(classes=5)
    before = model.cls_score.weight.clone()
    checkpointer = SafeCheckpointer(
        model, str(tmp_path), starts_afresh=lambda name: name.startswith("cls_score.")
    )
    checkpointer.resume_or_load(weights, resume=True)
    assert torch.equal(model.cls_score.weight, before)
    assert torch.equal(model.state_dict()[BACKBONE_KEY], stored(weights)[BACKBONE_KEY])

    checkpointer.save("model_0000001")
    nn.init.zeros_(model.cls_score.weight)
    checkpointer.resume_or_load(weights, resume=True)
    assert torch.equal(model.cls_score.weight, before)


@pytest.mark.parametrize("source", ["Caffe2", "torchvision"])
def test_backbone_of_the_model_zoo_is_matched_by_name(tmp_path, caplog, source):
    value = np.random.rand(4, 3, 1, 1).astype(np.float32)
    content = {
        # Detectron's blob names, with a layer that no detector has; or Detectron2's own format.
        "Caffe2": {"conv1_w": value, "pred_w": np.zeros((1000, 4), np.float32)},
        "torchvision": {
            "model": {"stem.conv1.weight": value, "fc.weight": np.zeros((1000, 4), np.float32)},
            "__author__": "torchvision",
            "matching_heuristics": True,
        },
    }[source]
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    model = Model()
    with caplog.at_level(logging.INFO):
        SafeCheckpointer(model).load(str(path))
    np.testing.assert_array_equal(model.state_dict()[BACKBONE_KEY].numpy(), value)
    assert "holds the backbone; the other 4 tensors" in caplog.text
    assert "not found in the checkpoint" not in caplog.text


def test_backbone_of_another_width_is_an_error_when_matched_by_name(tmp_path):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"conv1_w": np.zeros((64, 3, 1, 1), np.float32)}, protocol=2))
    with pytest.raises(ValueError, match=rf"{BACKBONE_KEY}: \(64, 3, 1, 1\) in the file"):
        SafeCheckpointer(Model()).load(str(path))


def test_evaluation_needs_every_tensor(weights, tmp_path):
    content = stored(weights)
    del content["cls_score.bias"]
    torch.save({"model": content}, weights)
    SafeCheckpointer(Model()).load(weights)
    with pytest.raises(ValueError, match=r"lacks 1 of the model's tensors: cls_score\.bias"):
        SafeCheckpointer(Model(), complete=True).load(weights)
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        SafeCheckpointer(Model(), complete=True).load("")


def test_weights_of_something_else_are_an_error(weights):
    torch.save({"model": {"encoder.weight": torch.ones(1)}}, weights)
    with pytest.raises(ValueError, match=r"none of the model's tensors.*encoder\.weight"):
        SafeCheckpointer(Model()).load(weights)
    torch.save([1, 2], weights)
    with pytest.raises(ValueError, match="holds a list"):
        SafeCheckpointer(Model()).load(weights)


def test_unknown_tensors_are_logged(weights, caplog):
    torch.save({"model": {**stored(weights), "extra.weight": torch.ones(1)}}, weights)
    with caplog.at_level(logging.WARNING):
        SafeCheckpointer(Model()).load(weights)
    assert "extra.weight" in caplog.text


@pytest.mark.parametrize("path", ["nowhere.pth", "nowhere.pkl", "http://127.0.0.1:9/weights.pkl"])
def test_missing_weights_are_named(path):
    with pytest.raises(FileNotFoundError, match=path):
        SafeCheckpointer(Model()).load(path)


def test_a_checkpointer_stays_usable_after_an_error(weights, tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"")
    checkpointer = SafeCheckpointer(Model())
    with pytest.raises(ValueError, match="damaged"):
        checkpointer.load(str(tmp_path / "damaged.pth"))
    checkpointer.load(weights)


def test_a_kill_while_writing_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model = Model()
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    kept = stored(tmp_path / "model_0000001.pth")

    def killed(data, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    nn.init.zeros_(model.cls_score.weight)
    monkeypatch.setattr(torch, "save", killed)
    for name in ("model_0000003", "model_0000001"):
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save(name)
    assert not os.path.exists(tmp_path / "model_0000003.pth")
    checkpointer.resume_or_load("", resume=True)
    assert torch.equal(model.cls_score.weight, kept["cls_score.weight"])


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    model = Model()
    nn.init.constant_(model.cls_score.bias, float("nan"))
    with pytest.raises(FloatingPointError, match=r"cls_score\.bias"):
        SafeCheckpointer(model, str(tmp_path)).save("model_0000001")
    assert list(tmp_path.iterdir()) == []
