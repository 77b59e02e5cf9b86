"""The installer: Detectron2's repacked wheel, and an environment layered over the user's own."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pip_calls
import pytest
import repack
import torch
from detectron2.structures import ImageList

from spatialflow.tools import doctor

ROOT = Path(__file__).resolve().parent.parent
CALL_INSTALLER = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import install; "


@pytest.fixture(scope="module")
def install():
    spec = importlib.util.spec_from_file_location("install", ROOT / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_python(python: Path | str, code: str) -> str:
    """Standard output of `python -c code`, without this process's import path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), "-c", code]
    return subprocess.run(
        command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


EDITED = {edit.file: f"# before\n{edit.before}# after\n" for edit in repack.DETECTRON2.edits}
"""The lines of the published Detectron2 that are changed, alone in their files."""


@pytest.fixture
def published_wheel(tmp_path) -> Path:
    """A small wheel with everything that is odd about the published one."""
    content = tmp_path / "content"
    files = {
        "detectron2/__init__.py": "__version__ = '0.7.2'\n",
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "machine code",
        **EDITED,
        "tools/__init__.py": "",
        "sal_detectron2-0.7.2.dist-info/METADATA": (
            "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n"
            "Requires-Dist: yacs>=0.1.8\nRequires-Dist: numpy<2\n"
        ),
        "sal_detectron2-0.7.2.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: false\nTag: cp310-none-any\n"
        ),
        "sal_detectron2-0.7.2.dist-info/top_level.txt": "detectron2\ntools\n",
        "sal_detectron2-0.7.2.dist-info/RECORD": "",
    }
    for name, text in files.items():
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        (content / name).write_text(text)
    run_wheel("pack", content, "-d", tmp_path)
    return tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"


def run_wheel(*args) -> None:
    subprocess.run([sys.executable, "-m", "wheel", *args], check=True, capture_output=True)


def repacked(wheel: Path, folder: Path, package=repack.DETECTRON2) -> Path:
    """The wheel repacked as if it were the published one."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return repack.repack(package._replace(sha256=digest), wheel, folder, run_wheel)


def test_repack__any_python_can_install_it(published_wheel, tmp_path):
    packed = repacked(published_wheel, tmp_path)
    version = f"0.7.2+{repack.LOCAL}"
    assert packed.name == f"sal_detectron2-{version}-py3-none-any.whl"
    info = f"sal_detectron2-{version}.dist-info/"
    with zipfile.ZipFile(packed) as archive:
        modules = {name for name in archive.namelist() if not name.startswith(info)}
        assert modules == {"detectron2/__init__.py", *EDITED}
        assert "_C" not in archive.read(info + "RECORD").decode()
        assert archive.read(info + "top_level.txt") == b"detectron2\n"
        metadata = archive.read(info + "METADATA").decode()
        assert f"\nVersion: {version}\n" in metadata
        assert "\nRequires-Dist: numpy\n" in metadata and "numpy<2" not in metadata

    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", site]
    subprocess.run([*pip, packed], check=True, capture_output=True)
    path = f"import sys; sys.path.insert(0, {str(site)!r}); "
    assert run_python(sys.executable, path + "import detectron2; print(detectron2.__file__)") == (
        f"{site / 'detectron2' / '__init__.py'}\n"
    )


@pytest.mark.parametrize("edit", repack.DETECTRON2.edits, ids=lambda edit: Path(edit.file).stem)
def test_repack__edit_replaces_its_lines_once(published_wheel, tmp_path, edit):
    with zipfile.ZipFile(repacked(published_wheel, tmp_path)) as archive:
        text = archive.read(edit.file).decode()
    assert text == f"# before\n{edit.after}# after\n"


@pytest.mark.parametrize("times", [0, 2])
def test_repack__lines_not_there_or_not_once__refused(tmp_path, times):
    edit = repack.DETECTRON2.edits[0]
    file = tmp_path / edit.file
    file.parent.mkdir(parents=True)
    file.write_text(edit.before * times)
    with pytest.raises(
        SystemExit, match=r"mask_ops.py of a.whl lacks the lines .*or has them more"
    ):
        repack.apply(edit, tmp_path, "a.whl")
    assert file.read_text() == edit.before * times


def test_repack__another_file__refused(published_wheel, tmp_path):
    with pytest.raises(SystemExit, match=r"cp310-none-any.whl is not the file that was tested"):
        repack.repack(repack.DETECTRON2, published_wheel, tmp_path, run_wheel)


@pytest.mark.parametrize("package", [repack.DETECTRON2, repack.PANOPTICAPI], ids=lambda p: p.name)
def test_installed_package_is_the_repacked_one(package):
    """What the installer put here has the edits, and its metadata says so."""
    found = {re.sub(r"[-_.]+", "-", d.metadata["Name"]): d for d in distributions()}
    if package.name not in found:
        pytest.skip(f"this environment has another package than {package.name}")
    distribution = found[package.name]
    assert distribution.version == package.repacked_version
    assert package.numpy[1] in distribution.requires
    for edit in package.edits:
        assert distribution.locate_file(edit.file).read_text().count(edit.after) == 1


@pytest.mark.parametrize("strict", [True, False])
def test_installed_detectron2__padding_can_be_exported(strict):
    class Pad(torch.nn.Module):
        def forward(self, image):
            return ImageList.from_tensors([image], 32).tensor

    image = torch.randn(3, 24, 40)
    exported = torch.export.export(Pad(), (image,), strict=strict).module()
    assert torch.equal(exported(image), Pad()(image))


@pytest.fixture
def parent(tmp_path) -> Path:
    """An environment of a user, without packages."""
    folder = tmp_path / "parent"
    command = [sys.executable, "-m", "venv", "--without-pip", folder]
    subprocess.run(command, check=True)
    return folder


def add_package(install, environment: Path, name: str, code: str) -> None:
    package = install.site_packages(environment) / name
    package.mkdir()
    (package / "__init__.py").write_text(code)


@pytest.mark.parametrize(
    ("code", "used"),
    [("__version__ = '0.6'", True), ("raise RuntimeError('built for another torch')", False)],
)
def test_parent_layers__detectron2_used_only_if_it_works(install, parent, code, used):
    add_package(install, parent, "detectron2", code)
    printed = run_python(
        parent / "bin/python", CALL_INSTALLER + "print(install.parent_layers())"
    ).splitlines()
    assert printed[-1] == str([str(install.site_packages(parent))] if used else [])
    assert ("Using Detectron2 0.6" if used else "built for another torch") in printed[0]


TORCH = """
__version__ = {version!r}
def zeros(*size): pass
ones = zeros
"""
TORCHVISION = """
class ops:
    @staticmethod
    def nms(*args):
        {body}
"""


@pytest.mark.parametrize(
    ("version", "body", "said"),
    [
        ("2.10.0", "pass", "Using PyTorch 2.10.0"),
        ("1.13.1", "pass", "1.13.1 is older than 2.4): not using it"),
        ("2.10.0", "raise RuntimeError('built for another torch')", "built for another torch"),
    ],
)
def test_parent_layers__torch_without_detectron2(install, parent, version, body, said):
    add_package(install, parent, "torch", TORCH.format(version=version))
    add_package(install, parent, "torchvision", TORCHVISION.format(body=body))
    printed = run_python(
        parent / "bin/python", CALL_INSTALLER + "print(install.parent_layers())"
    ).splitlines()
    used = said.startswith("Using")
    assert printed[-1] == str([str(install.site_packages(parent))] if used else [])
    assert said in printed[0]


def test_parent_layers__no_detectron2__nothing_shows_through(install, parent):
    call = CALL_INSTALLER + "print(install.parent_layers())"
    assert run_python(parent / "bin/python", call) == "[]\n"


def test_make_venv__layered__sees_the_parent_and_its_links(install, parent, tmp_path):
    add_package(install, parent, "detectron2", "__version__ = '0.6'")
    source = tmp_path / "source"
    source.mkdir()
    (source / "under_development.py").touch()
    (install.site_packages(parent) / "develop.pth").write_text(f"{source}\n")
    before = sorted(parent.rglob("*"))

    child = tmp_path / "child"
    make = f"from pathlib import Path; install.make_venv(Path({str(child)!r}), "
    run_python(parent / "bin/python", CALL_INSTALLER + make + "install.parent_layers())")
    seen = run_python(
        child / "bin/python",
        "import detectron2, under_development, pip; print(detectron2.__file__, pip.__file__)",
    ).split()
    assert seen[0].startswith(str(parent))
    assert seen[1].startswith(str(child))
    assert [path for path in sorted(parent.rglob("*")) if "__pycache__" not in str(path)] == before

    # The same kind again keeps what is there; another kind starts afresh.
    marker = install.site_packages(child) / "marker"
    marker.touch()
    run_python(parent / "bin/python", CALL_INSTALLER + make + "install.parent_layers())")
    assert marker.exists()
    run_python(sys.executable, CALL_INSTALLER + make + "[])")
    assert not marker.exists()
    assert not (install.site_packages(child) / install.LAYER_FILE).exists()


def add_distribution(folder: Path, name: str, version: str, more: str = "") -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}"
    )


def test_freeze__normalised_names_first_folder_wins_odd_versions_skipped(install, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    add_distribution(first, "Some_Package", "1.0+cu118")
    add_distribution(second, "some-package", "2.0")
    add_distribution(second, "other", "3")
    add_distribution(second, "system-thing", "unknown version")
    assert install.freeze([str(first), str(second)]) == {"some-package": "1.0+cu118", "other": "3"}


def test_list_missing__only_what_cannot_be_found(install, tmp_path):
    requirements = (
        "Requires-Dist: pytest>=999\n"  # there, in whatever version: stays as it is
        "Requires-Dist: opencv-python-headless\n"  # another distribution may provide cv2
        "Requires-Dist: not-on-this-machine>=2\n"
        'Requires-Dist: nor-this-one; extra == "dev"\n'
        'Requires-Dist: spatialflow[backbones]; extra == "dev"\n'
        'Requires-Dist: nor-that-one; extra == "timm"\n'
        'Requires-Dist: only-elsewhere; sys_platform == "win32"\n'
    )
    add_distribution(tmp_path, "spatialflow", "9", requirements)
    (tmp_path / "cv2.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + install.LIST_MISSING
    missing = ["not-on-this-machine>=2", "nor-this-one", "nor-that-one"]
    assert run_python(sys.executable, code).split() == missing


@pytest.mark.parametrize("version", [(3, 10, 18), (3, 15, 0)])
def test_check_python__unsupported__one_message(install, monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit, match=r"3\.11 to 3\.1\d are supported.*make install PYTHON="):
        install.check_python()


def test_check_python__cannot_make_environments__one_message(install, monkeypatch):
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="apt install python3-venv"):
        install.check_python()


def test_pip__fails__names_the_step_and_what_to_do(tmp_path, capfd):
    pip = pip_calls.Pip(Path(sys.executable), wheels=tmp_path)
    with pytest.raises(SystemExit, match="Could not install the thing.*Is PyPI reachable"):
        pip.install("the thing", "no-such-distribution-here")
    assert "No matching distribution found" in capfd.readouterr().err


def test_replaced_constraints__another_torch_brings_its_own_libraries():
    constraints = (ROOT / "constraints.txt").read_text()
    other = pip_calls.replaced(constraints, ["numpy==2.0.0"]).splitlines()
    assert [line for line in other if line.startswith("numpy")] == ["numpy==2.0.0"]
    assert any(line.startswith("nvidia-") for line in other)
    other = pip_calls.replaced(constraints, ["torch==2.4.1"]).splitlines()
    assert [line for line in other if line.startswith("torch==")] == ["torch==2.4.1"]
    assert not [line for line in other if line.startswith(("nvidia-", "cuda-", "triton"))]
    assert any(line.startswith("torchvision==") for line in other)


def test_supported_pythons_are_the_same_everywhere(install):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest, newest = (".".join(map(str, v)) for v in (install.OLDEST, install.NEWEST))
    after = f"{install.NEWEST[0]}.{install.NEWEST[1] + 1}"
    assert project["requires-python"] == f">={oldest},<{after}"
    listed = {c.rpartition(" ")[2] for c in project["classifiers"] if ":: 3." in c}
    minors = range(install.OLDEST[1], install.NEWEST[1] + 1)
    assert listed == {f"3.{minor}" for minor in minors}
    assert (doctor.OLDEST_PYTHON, doctor.NEWEST_PYTHON) == (install.OLDEST, install.NEWEST)
    assert f"Python {oldest} to {newest}" in (ROOT / "README.md").read_text()
