"""The package: a lazy public API, and a wheel that carries its data files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import spatialflow
from spatialflow.config import config_dir

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, folder: Path = ROOT) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_import__needs_neither_torch_nor_detectron2():
    loaded = run_python("import sys, spatialflow; print(*sys.modules)").split()
    assert "spatialflow" in loaded
    assert not {"torch", "detectron2", "spatialflow.config"} & set(loaded)


@pytest.mark.parametrize("name", spatialflow.__all__)
def test_public_name__resolves(name):
    assert getattr(spatialflow, name).__name__ == name
    assert name in dir(spatialflow)


def test_public_name__registers_the_model():
    printed = run_python(
        "from spatialflow import load_config\n"
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "print('SpatialFlow' in META_ARCH_REGISTRY)"
    )
    assert printed == "True\n"


def test_public_name__no_detectron2__says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(ImportError, match=r"load_config needs Detectron2.*make install"):
        spatialflow.load_config  # noqa: B018


def test_unknown_name__attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        spatialflow.nonsense  # noqa: B018


def test_config_dir__in_the_repository():
    assert config_dir() == ROOT / "configs"


def test_wheel__carries_commands_configs_weights_and_report_and_finds_them(tmp_path):
    source = tmp_path / "source"
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("spatialflow", "configs", "runtime"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=leave)
    for file in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("spatialflow-*.whl")

    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    printed = run_python(
        "from spatialflow.config import config_dir; print(config_dir())", installed
    )
    carried = Path(printed.strip())
    assert carried == installed / "spatialflow" / "configs"

    def contents(folder: Path) -> dict[str, bytes]:
        files = (f for suffix in ("yaml", "py") for f in folder.rglob(f"*.{suffix}"))
        return {str(f.relative_to(folder)): f.read_bytes() for f in files}

    assert contents(carried) == contents(ROOT / "configs") != {}
    assert Path(carried, "lazy", "spatialflow_toy.py").is_file()
    for folder in ("report/assets", "serve/static", "web"):
        assets = Path("spatialflow", "tools", folder)
        assert {f.name for f in (installed / assets).iterdir()} == {
            f.name for f in (ROOT / assets).iterdir()
        }
    assert (installed / "spatialflow_runtime" / "model.py").is_file()
    measured = Path("spatialflow", "tools", "zoo", "measured.json")
    assert (installed / measured).read_bytes() == (ROOT / measured).read_bytes()
    checkpoints = Path("spatialflow", "model_zoo", "checkpoints")
    shipped = [f.relative_to(ROOT) for f in (ROOT / checkpoints).rglob("*.pth")]
    assert shipped and all((installed / f).is_file() for f in shipped)
    assert all((installed / f).with_suffix(".json").is_file() for f in shipped)
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "spatialflow = spatialflow.cli:main" in entry_points.read_text()
    for name in ("train", "demo", "toy"):
        code = f"import sys; from spatialflow.cli import main; sys.exit(main(['{name}', '--help']))"
        assert f"usage: spatialflow {name}" in run_python(code, installed)
