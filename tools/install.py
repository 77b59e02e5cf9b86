"""Make a virtual environment with SpatialFlow and everything it needs; `make install` calls this.

Two ways, chosen by the Python that runs this script:

- It cannot import Detectron2 (a fresh machine): everything is installed from PyPI in the versions
  of constraints.txt. PyPI's build of Detectron2 is repacked first, see `repack_detectron2`.
- It can import Detectron2: the environment of that Python shows through into the new one and stays
  as it is; only packages that it lacks are installed, in versions that suit what it has.

Needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"

# Upstream's commit a59f0563 of April 2024, the only recent Detectron2 that PyPI carries as a wheel.
DETECTRON2 = "sal-detectron2==0.7.2"
DETECTRON2_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"

LAYER_FILE = "parent_environment.pth"
"""Lies in the new environment's site-packages and adds the parent's to the import path."""

# Settings of the caller that would send pip elsewhere than into the new environment.
UNWANTED_SETTINGS = ("PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_CONSTRAINT")

# Lists what the installed spatialflow requires and cannot find. Other distributions may provide
# OpenCV and panopticapi, so these two are looked for as modules.
LIST_MISSING = """
from importlib.metadata import PackageNotFoundError, distribution, requires
from importlib.util import find_spec
from pip._vendor.packaging.requirements import Requirement
MODULES = {"opencv-python-headless": "cv2", "panopticapi-lite": "panopticapi"}
def have(name):
    try:
        return bool(find_spec(MODULES[name]) if name in MODULES else distribution(name))
    except PackageNotFoundError:
        return False
for text in requires("spatialflow"):
    need = Requirement(text)
    extras = ("dev", "timm", "safetensors", "serve")
    wanted = not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in extras)
    if wanted and not have(need.name):
        print(f"{need.name}{need.specifier}")
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Install; ends the process with one message if that fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="default: %(default)s")
    folder = parser.parse_args(argv).venv.resolve()
    check_python()
    site = site_packages(folder)
    if Path(sys.prefix).resolve() == folder:  # started from inside the environment: keep its kind
        layers = [path for path in package_folders() if Path(path).resolve() != site]
    else:
        layers = parent_layers()
        make_venv(folder, layers)
    python = folder / "bin" / "python"
    # First what builds packages, so that source packages are built by a pinned setuptools, too.
    pip_install(python, "the build tools", "setuptools", "wheel")
    if layers:
        install_missing(python, layers)
    else:
        install_everything(python, have=freeze([str(site)]))
    say("Checking the installation")
    run(
        [python, "-m", "spatialflow.tools.doctor"],
        "The installation is not complete; see the lines above.",
    )


def check_python() -> None:
    """Raises SystemExit where this Python is too old or new, or cannot make environments."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        raise SystemExit(
            f"error: {sys.executable} is Python {sys.version.split()[0]}, and 3.10 to 3.12 are "
            "supported. Name one of these: make install PYTHON=python3.12"
        )
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        raise SystemExit(
            f"error: {sys.executable} cannot make virtual environments; on Debian and Ubuntu, "
            "apt install python3-venv. Or name another Python: make install PYTHON=..."
        )


def parent_layers() -> list[str]:
    """The site-packages folders of this Python if it can import Detectron2, otherwise none."""
    if find_spec("detectron2") is None:
        return []
    probe = "import detectron2; print(detectron2.__version__, 'of', detectron2.__path__[0])"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if found.returncode:
        reason = found.stderr.strip().splitlines()[-1]
        say(f"{sys.executable} has a Detectron2 that cannot be imported ({reason}): not using it")
        return []
    say(f"Using Detectron2 {found.stdout.strip()}, and what else is installed beside it")
    return package_folders()


def package_folders() -> list[str]:
    """The folders on the import path that hold installed packages."""
    return [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]


def site_packages(folder: Path) -> Path:
    """Where the environment in `folder` keeps packages, for the running Python's version."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "lib" / version / "site-packages"


def make_venv(folder: Path, layers: Sequence[str]) -> None:
    """Make the environment, or keep the one that is there if it is of the same kind."""
    site = site_packages(folder)
    layer_file = site / LAYER_FILE
    # Not plain paths: addsitedir also follows the parent's own .pth files, by which packages under
    # development are found.
    content = "".join(f"import site; site.addsitedir({layer!r})\n" for layer in layers)
    there = layer_file.read_text() if layer_file.is_file() else ""
    other_kind = folder.exists() and (not site.is_dir() or there != content)
    say(f"Making {folder} with {sys.executable}" + (", from scratch" if other_kind else ""))
    command = [sys.executable, "-m", "venv", *(["--clear"] if other_kind else []), folder]
    run(command, f"Cannot make the environment {folder}; Python tells why above.")
    if layers:
        layer_file.write_text(content)


def install_everything(python: Path, have: dict[str, str]) -> None:
    """Install the tested versions of everything from PyPI; `have`: what is there, as `freeze`."""
    pip_install(python, "PyTorch (large)", "torch", "torchvision")
    name, _, version = DETECTRON2.partition("==")
    if have.get(name) != version:
        with tempfile.TemporaryDirectory() as folder:
            wheel = fetch_detectron2(python, Path(folder))
            pip_install(python, "Detectron2 and what it needs", wheel)
    pip_install(python, "SpatialFlow", "--editable", f"{ROOT}[dev]")
    run([python, "-m", "pip", "check"], "The installed packages do not fit together.")


def install_missing(python: Path, layers: Sequence[str]) -> None:
    """Install what the parent environment lacks, and nothing that it has in another version."""
    with tempfile.TemporaryDirectory() as folder:
        pins = freeze(layers)
        pins.pop("setuptools", None)  # the new environment has its own
        constraints = Path(folder) / "parent.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        pip_install(python, "SpatialFlow", "--no-deps", "--editable", ROOT)
        listed = run([python, "-c", LIST_MISSING], "Cannot list what is missing.", capture=True)
        missing = listed.split()
        if not pins.get("numpy", "").startswith("1."):
            # panopticapi-lite asks for numpy 1 but runs under 2; what it imports is there already.
            lite = [m for m in missing if m.startswith("panopticapi-lite")]
            missing = [m for m in missing if m not in lite]
            if lite:
                pip_install(python, lite[0], "--no-deps", lite[0], constraints=constraints)
        if missing:
            pip_install(python, ", ".join(missing), *missing, constraints=constraints)


def freeze(folders: Sequence[str]) -> dict[str, str]:
    """Versions of the distributions in `folders` by normalised name; the first folder wins."""
    pins: dict[str, str] = {}
    for found in distributions(path=list(folders)):
        name = found.metadata["Name"]
        # Some system packages have no name, or a version that pip does not read.
        if name and re.fullmatch(r"\d[\w.+!]*", found.version or ""):
            pins.setdefault(re.sub(r"[-_.]+", "-", name).lower(), found.version)
    return pins


def fetch_detectron2(python: Path, folder: Path) -> Path:
    """Download PyPI's Detectron2 into `folder`, check it and repack it.

    Returns:
        The path of the repacked wheel.
    """
    say(f"Fetching Detectron2 ({DETECTRON2})")
    # As for Python 3.10 on x86-64, whatever this machine is: only so is the wheel offered.
    tag = ["--python-version", "3.10", "--implementation", "cp", "--abi", "cp310"]
    platform = ["--platform", "manylinux2014_x86_64", "--platform", "any"]
    to = ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command = [python, "-m", "pip", "download", *to, *tag, *platform, DETECTRON2]
    run(command, pip_failed("Detectron2"))
    (wheel,) = folder.glob("*.whl")
    return repack_detectron2(python, wheel, folder, DETECTRON2_SHA256)


def repack_detectron2(python: Path, wheel: Path, folder: Path, sha256: str) -> Path:
    """Turn PyPI's wheel of Detectron2 into one for every Python 3.

    It is tagged for Python 3.10 for the sake of a compiled extension that loads nowhere else and
    that this project does not need; the rest is plain Python. It also carries a top-level package
    `tools`, which would hide other projects' modules of that name.

    Args:
        python: a Python that has the package `wheel`.
        wheel: the file as downloaded.
        folder: where to write the new one.
        sha256: what the file's digest must be.

    Raises:
        SystemExit: the file is another one, or it cannot be repacked.
    """
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != sha256:
        raise SystemExit(
            f"error: {wheel.name} is not the file that was tested, and is not installed: its "
            f"sha256 is {digest}, not {sha256}. Check which package index pip uses: pip config list"
        )
    failed = f"Cannot repack {wheel.name}."
    with tempfile.TemporaryDirectory(dir=folder) as work:
        run([python, "-m", "wheel", "unpack", wheel, "--dest", work], failed)
        (content,) = Path(work).iterdir()
        for extension in content.glob("detectron2/_C*.so"):
            extension.unlink()
        shutil.rmtree(content / "tools")
        (info,) = content.glob("*.dist-info")
        rewrite(info / "WHEEL", r"^Tag: .*", "Tag: py3-none-any")
        rewrite(info / "WHEEL", r"^Root-Is-Purelib: .*", "Root-Is-Purelib: true")
        rewrite(info / "top_level.txt", r"^tools\n", "")
        out = folder / "repacked"
        out.mkdir()
        run([python, "-m", "wheel", "pack", content, "--dest-dir", out], failed)
    (packed,) = out.iterdir()
    return packed


def rewrite(file: Path, pattern: str, replacement: str) -> None:
    """Replace what matches `pattern`, line by line."""
    file.write_text(re.sub(pattern, replacement, file.read_text(), flags=re.MULTILINE))


def pip_install(
    python: Path, what: str, *args: str | Path, constraints: Path = CONSTRAINTS
) -> None:
    """`pip install` within the constraints, with pip's own progress."""
    say(f"Installing {what}")
    # Without isolation, source packages are built by the setuptools installed first, not by
    # whichever is the newest that day.
    command = [python, "-m", "pip", "install", "--no-build-isolation", "-c", constraints, *args]
    run(command, pip_failed(what))


def pip_failed(what: str) -> str:
    """What to say after pip has failed and printed its reasons."""
    return (
        f"Could not install {what}; pip tells why above. Is PyPI reachable (`pip config list` "
        "shows which index is used), is there room on the disk? What is installed so far stays: "
        "run the same command again to go on."
    )


def run(command: Sequence[str | Path], failed: str, capture: bool = False) -> str:
    """Run a command in the repository's root; `failed` is the message if it does not succeed.

    Returns:
        What it wrote to standard output if `capture`, otherwise "".
    """
    settings = {k: v for k, v in os.environ.items() if k not in UNWANTED_SETTINGS}
    settings["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    stdout = subprocess.PIPE if capture else None
    args = [str(part) for part in command]
    done = subprocess.run(args, cwd=ROOT, env=settings, stdout=stdout, text=True)
    if done.returncode:
        raise SystemExit(f"\nerror: {failed}")
    return done.stdout or ""


def say(text: str) -> None:
    """Tell the user which step comes now."""
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    main()
