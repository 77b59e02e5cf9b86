"""Make a virtual environment with SpatialFlow and everything it needs; `make install` calls this.

Two ways, chosen by the Python that runs this script:

- It has neither Detectron2 nor PyTorch (a fresh machine): everything is installed from PyPI in the
  versions of constraints.txt. PyPI's builds of Detectron2 and panopticapi are repacked first, see
  `repack.py`.
- It can import one of them (an environment of conda, say): it shows through into the new one and
  stays as it is; only packages that it lacks are installed, in versions that suit what it has.

With `--wheels FOLDER` nothing is downloaded: `--collect FOLDER` gathered what that needs, on a
machine of the same kind. Needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from pip_calls import ROOT, Pip, run, say
from repack import DETECTRON2, LOCAL, PANOPTICAPI, Package, fetch

OLDEST, NEWEST = (3, 11), (3, 13)
"""The first and the last Python that everything has wheels for."""

OLDEST_TORCH = (2, 4)
"""The first PyTorch that runs the tests; an older one in the parent environment is not used."""

LAYER_FILE = "parent_environment.pth"
"""Lies in the new environment's site-packages and adds the parent's to the import path."""

PROBE_DETECTRON2 = """
import detectron2
print(detectron2.__version__, "of", detectron2.__path__[0])
"""

# Whether PyTorch and torchvision are new enough and fit together.
PROBE_TORCH = f"""
import re, torch, torchvision
version = tuple(map(int, re.findall("[0-9]+", torch.__version__)[:2]))
if version < {OLDEST_TORCH}:
    raise SystemExit(f"{{torch.__version__}} is older than {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}")
torchvision.ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
print(torch.__version__, "of", torch.__path__[0])
"""

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
    extras = ("dev", "timm", "safetensors", "panopticapi", "export", "serve", "scale")
    wanted = not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in extras)
    if wanted and not have(need.name):
        print(f"{need.name}{need.specifier}")
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Install; ends the process with one message if that fails."""
    args = parse(argv)
    folder = args.venv.resolve()
    check_python()
    site = site_packages(folder)
    if Path(sys.prefix).resolve() == folder:  # started from inside the environment: keep its kind
        layers = [path for path in package_folders() if Path(path).resolve() != site]
    else:
        layers = [] if args.fresh else parent_layers()
        make_venv(folder, layers)
    pip = Pip(folder / "bin" / "python", args.wheels, args.replace)
    # First what builds packages, so that source packages are built by a pinned setuptools, too.
    pip.install("the build tools", "setuptools", "wheel")
    if args.collect:
        return collect(pip, args.collect)
    if layers:
        install_missing(pip, layers)
    else:
        install_everything(pip, have=freeze([str(site)]))
    say("Checking the installation")
    run(
        [pip.python, "-m", "spatialflow.tools.doctor"],
        "The installation is not complete; see the lines above.",
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="default: %(default)s")
    parser.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="install from this folder, without a network"
    )
    parser.add_argument(
        "--collect",
        type=Path,
        metavar="FOLDER",
        help="write the wheels for --wheels into this folder instead of installing",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="do not use packages of the Python that runs this"
    )
    parser.add_argument(
        "--replace",
        nargs="+",
        default=[],
        metavar="NAME==VERSION",
        help="versions other than those of constraints.txt, for trying them out",
    )
    return parser.parse_args(argv)


def check_python() -> None:
    """Raises SystemExit where this Python is too old or new, or cannot make environments."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
        raise SystemExit(
            f"error: {sys.executable} is Python {sys.version.split()[0]}, and {oldest} to {newest} "
            f"are supported. Name one of these: make install PYTHON=python{newest}"
        )
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        raise SystemExit(
            f"error: {sys.executable} cannot make virtual environments; on Debian and Ubuntu, "
            "apt install python3-venv. Or name another Python: make install PYTHON=..."
        )


def parent_layers() -> list[str]:
    """The site-packages folders of this Python if it has Detectron2 or PyTorch, otherwise none."""
    for module, label, probe in (
        ("detectron2", "Detectron2", PROBE_DETECTRON2),
        ("torch", "PyTorch", PROBE_TORCH),
    ):
        if find_spec(module) is None:
            continue
        found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
        if not found.returncode:
            say(f"Using {label} {found.stdout.strip()}, and what else is installed beside it")
            return package_folders()
        reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
        say(f"{sys.executable} has a {label} that cannot be used ({reason}): not using it")
        return []
    return []


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


def install_everything(pip: Pip, have: dict[str, str]) -> None:
    """Install the tested versions of everything from PyPI; `have`: what is there, as `freeze`."""
    pip.install("PyTorch (large)", "torch", "torchvision")
    install_repacked(pip, DETECTRON2, have)
    install_repacked(pip, PANOPTICAPI, have)
    pip.install("SpatialFlow", "--editable", f"{ROOT}[dev]")
    run([pip.python, "-m", "pip", "check"], "The installed packages do not fit together.")


def install_missing(pip: Pip, layers: Sequence[str]) -> None:
    """Install what the parent environment lacks, and nothing that it has in another version."""
    with tempfile.TemporaryDirectory() as folder:
        pins = freeze(layers)
        pins.pop("setuptools", None)  # the new environment has its own
        constraints = Path(folder) / "parent.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        pip = pip._replace(constraints=constraints)
        if find_spec("detectron2") is None:
            install_repacked(pip, DETECTRON2, {})
        pip.install("SpatialFlow", "--no-deps", "--editable", ROOT)
        listed = run([pip.python, "-c", LIST_MISSING], "Cannot list what is missing.", capture=True)
        missing = [m for m in listed.split() if not m.startswith(PANOPTICAPI.name)]
        if len(missing) < len(listed.split()):
            install_repacked(pip, PANOPTICAPI, {})
        if missing:
            pip.install(", ".join(missing), *missing)


def install_repacked(pip: Pip, package: Package, have: dict[str, str]) -> None:
    """Fetch, repack and install a package, unless it is there."""
    if have.get(package.name) == package.repacked_version:
        return
    with tempfile.TemporaryDirectory() as folder:
        what = f"{package.requirement}+{LOCAL}"
        wheel = what if pip.wheels else fetch(pip.python, package, Path(folder))
        pip.install(f"{package.name} and what it needs", wheel)


def collect(pip: Pip, folder: Path) -> None:
    """Write the wheels of everything into a folder, for `--wheels` where there is no network."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        repacked = [fetch(pip.python, p, Path(work)) for p in (DETECTRON2, PANOPTICAPI)]
        for wheel in repacked:
            shutil.copy(wheel, folder)
        pip.build(folder, "setuptools", "wheel", "torch", "torchvision", *repacked, f"{ROOT}[dev]")
    for own in folder.glob("spatialflow-*.whl"):  # is installed from the repository
        own.unlink()
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
    say(f"{size:.1f} GB in {folder}. Without a network: make install WHEELS={folder}")


def freeze(folders: Sequence[str]) -> dict[str, str]:
    """Versions of the distributions in `folders` by normalised name; the first folder wins."""
    pins: dict[str, str] = {}
    for found in distributions(path=list(folders)):
        name = found.metadata["Name"]
        # Some system packages have no name, or a version that pip does not read.
        if name and re.fullmatch(r"\d[\w.+!]*", found.version or ""):
            pins.setdefault(re.sub(r"[-_.]+", "-", name).lower(), found.version)
    return pins


if __name__ == "__main__":
    main()
