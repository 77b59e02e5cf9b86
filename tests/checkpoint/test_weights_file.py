"""Weights alone: both formats, both precisions, and the command that writes them."""

from __future__ import annotations

import os

import pytest
import torch
from builders import tiny_model

from spatialflow import cli
from spatialflow.checkpoint import SafeCheckpointer
from spatialflow.checkpoint.weights_file import load_weights, save_weights

FORMATS = (".pth", ".safetensors")


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("half", [True, False])
def test_a_model_loads_what_the_command_writes(tmp_path, capsys, ending, half):
    torch.manual_seed(1)
    trained, model = tiny_model(), tiny_model()
    SafeCheckpointer(trained, str(tmp_path)).save("model_final", iteration=7)
    path = tmp_path / "new" / f"w{ending}"
    argv = ["convert-weights", str(tmp_path / "model_final.pth"), str(path), *["--half"] * half]
    assert cli.main(argv) == 0
    assert f"tensors written to {path}" in capsys.readouterr().out
    ratio = os.path.getsize(path) / os.path.getsize(tmp_path / "model_final.pth")
    assert (0.45 < ratio < 0.7) if half else (0.9 < ratio < 1.1)

    SafeCheckpointer(model, complete=True).load(str(path))
    for name, value in model.state_dict().items():
        expected = trained.state_dict()[name]
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected.half().to(expected.dtype) if half else expected)


@pytest.mark.parametrize("ending", FORMATS)
def test_tensors_that_share_memory_or_are_not_contiguous(tmp_path, ending):
    x = torch.arange(24.0).view(1, 2, 3, 4)
    tensors = {"a": x, "b": x.transpose(1, 2), "c": x.to(memory_format=torch.channels_last)}
    tensors["count"] = torch.tensor(3)
    save_weights(tensors, str(tmp_path / f"w{ending}"), half=True)
    loaded = load_weights(str(tmp_path / f"w{ending}"))
    assert loaded.keys() == tensors.keys()
    for key, value in tensors.items():
        assert torch.equal(loaded[key].to(value.dtype), value)
    assert loaded["count"].dtype == torch.int64 and loaded["a"].dtype == torch.float16


def test_numbers_that_half_precision_does_not_have_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(ValueError, match="not written.*norm.running_var are not finite"):
        save_weights({"norm.running_var": torch.tensor([1e6])}, str(path), half=True)
    assert not path.exists()


@pytest.mark.parametrize("name", ["w.pt", "w"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: weights are written to .pth or .safetensors"):
        save_weights({"a": torch.zeros(1)}, str(tmp_path / name))


def test_what_is_no_dict_of_tensors_is_refused(tmp_path):
    path = str(tmp_path / "w.pth")
    for content, message in (
        ([torch.zeros(1)], "holds a list"),
        ({"model": {"a": torch.zeros(1), "b": 3}}, "no tensors by name: b"),
        ({}, "it is empty"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=f"w.pth .*{message}"):
            load_weights(path)


def test_a_damaged_safetensors_file_is_one_message(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="w.safetensors is no weights file, or is damaged"):
        load_weights(str(tmp_path / "w.safetensors"))
