"""The doctor tells what is missing, runs whatever is missing, and its exit status says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import detectron2
import pytest
import torch
import torchvision

from spatialflow.cli import run_command
from spatialflow.tools import doctor, toy
from spatialflow.tools.doctor import Finding, Status

ROOT = Path(__file__).resolve().parents[2]


def write_module(folder: Path, name: str, code: str) -> None:
    (folder / f"{name}.py").write_text(code)


def test_main__complete_environment__exit_status_0(capsys):
    assert run_command("doctor", []) == 0
    printed = capsys.readouterr().out
    assert f"PyTorch            {torch.__version__}" in printed
    assert "Everything needed is there." in printed


def test_main__package_missing__exit_status_1_and_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shapely", None)
    assert run_command("doctor", []) == 1
    printed = capsys.readouterr().out
    assert "MISSING shapely            not installed" in printed
    assert printed.endswith("Missing: shapely.\n")


def test_doctor__nothing_but_the_standard_library__reports_all_missing(tmp_path):
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "nowhere")}
    environment.pop("PYTHONPATH", None)
    without_packages = [sys.executable, "-S", "-m", "spatialflow", "doctor"]
    done = subprocess.run(
        without_packages, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "Missing: PyTorch, torchvision, Detectron2, numpy," in done.stdout
    assert f"{tmp_path / 'nowhere'} not found" in " ".join(done.stdout.split())
    assert "make install" in done.stdout


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "raise OSError('libGL.so.1: no such file\\nmore')",
            "cannot be imported: OSError: libGL.so.1: no such file",
        ),
        ("import not_there_either", "lacks the module not_there_either"),
    ],
)
def test_check_module__broken__tells_why_in_one_line(monkeypatch, tmp_path, code, message):
    write_module(tmp_path, "fragile_module", code)
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.check_module("fragile_module")
    assert found == Finding("fragile_module", Status.MISSING, message, doctor.REINSTALL)


def test_optional_module__absent__says_what_it_is_for_and_how_to_get_it(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = doctor.check_optional_module("timm")
    assert found.status is doctor.Status.NOTE
    assert "pretrained backbones" in found.message and "spatialflow[timm]" in found.advice


def test_check_module__another_distribution_provides_it__names_it():
    assert "(opencv-" in doctor.check_module("cv2").message


def test_check_torch__missing__other_checks_still_answer(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor.check_torch().status is Status.MISSING
    assert doctor.check_cuda().status is Status.NOTE


def test_check_cuda__gpu_that_fails__is_a_note_with_advice(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", fail)
    found = doctor.check_cuda()
    assert found.status is Status.NOTE
    assert found.message.endswith("no kernel image is available")
    assert "driver" in found.advice


def test_check_torchvision__operators_of_another_build__missing(monkeypatch):
    def fail(*args):
        raise RuntimeError("operator torchvision::nms does not exist")

    assert doctor.check_torchvision().status is Status.OK
    monkeypatch.setattr(torchvision.ops, "nms", fail)
    found = doctor.check_torchvision()
    assert found.status is Status.MISSING
    assert "torchvision::nms does not exist" in found.message


def test_check_detectron2__tells_version_and_place():
    found = doctor.check_detectron2()
    assert found.status is Status.OK
    assert detectron2.__version__ in found.message
    assert str(Path(detectron2.__path__[0]).parent) in found.message


def test_check_detectron2__missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    assert doctor.check_detectron2().status is Status.MISSING
    assert doctor.check_compiled_operators().message == "not tried, Detectron2 is missing"


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("", Status.OK, "compiled operators are there"),
        (
            "raise ImportError('undefined symbol: x')",
            Status.NOTE,
            "compiled but fails: cannot be imported: ImportError: undefined symbol: x",
        ),
        (
            None,
            Status.NOTE,
            "operators are not compiled: no rotated boxes, no fast COCO evaluation",
        ),
    ],
)
def test_check_compiled_operators(monkeypatch, tmp_path, code, status, message):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").touch()
    if code is not None:
        write_module(package, "_C", code)
    for name in [n for n in sys.modules if n.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.check_compiled_operators()
    for name in ("detectron2", "detectron2._C"):
        sys.modules.pop(name, None)
    assert (found.status, found.message) == (status, message)


def test_datasets_root__from_the_environment_or_beside():
    assert doctor.datasets_root({"DETECTRON2_DATASETS": "/data"}) == Path("/data")
    assert doctor.datasets_root({"DETECTRON2_DATASETS": "~/data"}) == Path.home() / "data"
    assert doctor.datasets_root({}) == Path("datasets")


def test_check_dataset__complete_partial_absent(tmp_path):
    layout = next(d for d in doctor.DATASETS if d.name == "COCO val2017")
    absent = doctor.check_dataset(layout, tmp_path)
    assert (absent.status, absent.message) == (Status.NOTE, "not found")
    assert absent.advice

    (tmp_path / "coco/val2017").mkdir(parents=True)
    (tmp_path / "coco/panoptic_val2017").mkdir()
    partial = doctor.check_dataset(layout, tmp_path)
    assert partial.message == "incomplete, without coco/annotations/panoptic_val2017.json"

    (tmp_path / "coco/annotations").mkdir()
    (tmp_path / "coco/annotations/panoptic_val2017.json").touch()
    assert doctor.check_dataset(layout, tmp_path).status is Status.OK


def test_check_dataset__toy_scenes_as_written(tmp_path):
    toy.generate(str(tmp_path), train=1, val=1)
    layout = next(d for d in doctor.DATASETS if d.name == "toy scenes")
    assert doctor.check_dataset(layout, tmp_path).status is Status.OK


def test_check_dataset__real_coco_layout(coco_sample):
    layout = next(d for d in doctor.DATASETS if d.name == "COCO val2017")
    assert doctor.check_dataset(layout, coco_sample).status is Status.OK


def test_report__long_lines_wrap_and_paths_stay_whole():
    path = "/a/long-path" * 8
    finding = Finding("a", Status.NOTE, f"not {path} " + "word " * 20, "advice " * 20)
    lines = doctor.report([finding]).splitlines()
    assert path in [line.strip() for line in lines]
    assert max(len(line) for line in lines if path not in line) <= 100


def test_report__neighbours_share_advice():
    findings = [Finding(name, Status.MISSING, "gone", "install it") for name in ("a", "b")]
    findings.append(Finding("c", Status.OK, "fine"))
    lines = doctor.report(findings).splitlines()
    assert [line.split() for line in lines] == [
        ["MISSING", "a", "gone"],
        ["MISSING", "b", "gone"],
        ["->", "install", "it"],
        ["ok", "c", "fine"],
    ]
