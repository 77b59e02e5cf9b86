"""Repack wheels of PyPI that are older than today's Pythons and numpy; for `tools/install.py`.

Two packages that are needed had no release for years: Detectron2, of which PyPI has one recent
wheel only, and panopticapi. Each is downloaded, compared with the hash of the file that was tested,
changed by the edits below and packed again under a local version (0.7.2+spatialflow1), so that
`pip list` tells it from the published file and `pip check` reads what it really needs.

    python tools/repack.py wheels

writes both into a folder, for any environment: `pip install wheels/*.whl`. Needs
nothing but the standard library, and pip and `wheel` in the Python that runs it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pip_calls import pip_failed, run, say

LOCAL = "spatialflow1"
"""The local version label; count it up when an edit changes, so that it is installed again."""


class Edit(NamedTuple):
    """Lines of one file of a wheel, which must occur once, and what stands there afterwards."""

    file: str
    before: str
    after: str


class Package(NamedTuple):
    """A wheel of PyPI and its changes.

    Attributes:
        name, version, sha256: the published file that was tested.
        edits: changes of its modules.
        numpy: its requirement of numpy, a line of METADATA that is dropped with its upper bound.
        dropped: globs of files that are not installed, such as extensions compiled for one Python.
        tag: `pip download`'s options to be offered the wheel on every machine.
    """

    name: str
    version: str
    sha256: str
    edits: tuple[Edit, ...] = ()
    numpy: tuple[str, str] | None = None
    dropped: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name}=={self.version}"

    @property
    def repacked_version(self) -> str:
        """The version that it has when it is installed."""
        return f"{self.version}+{LOCAL}"


# Upstream's commit 70f45430: numpy 2 refuses `copy=False` where a copy cannot be avoided.
_NUMPY_2 = Edit(
    "detectron2/layers/mask_ops.py",
    "    mask = np.array(mask, copy=False)\n",
    "    mask = np.asarray(mask)\n",
)

# Upstream's commit 31bebdea: torch.export cannot see that padding to the next multiple is never
# negative, and refuses to trace F.pad without being told. 65184fc0, another change of July 2024 for
# torch.export, is not here: only its description could be read, not its lines.
_PADDING = Edit(
    "detectron2/structures/image_list.py",
    """\
            padding_size = [0, max_size[-1] - image_size[1], 0, max_size[-2] - image_size[0]]
""",
    """\
            padding_size = [0, max_size[-1] - image_size[1], 0, max_size[-2] - image_size[0]]
            if not torch.jit.is_scripting():
                if torch.compiler.is_compiling():
                    for pad in padding_size[1::2]:
                        torch._check(pad.item() >= 0)
""",
)

DETECTRON2 = Package(
    # Upstream's commit a59f0563 of April 2024, the only recent Detectron2 that PyPI has as a wheel.
    name="sal-detectron2",
    version="0.7.2",
    sha256="491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561",
    edits=(_NUMPY_2, _PADDING),
    numpy=("numpy<2", "numpy"),
    # An extension for one Python that loads nowhere else, and a stray top-level package.
    dropped=("detectron2/_C*.so", "tools"),
    # As for Python 3.10 on x86-64, whatever this machine is: only so is the wheel offered.
    tag=(
        *("--python-version", "3.10", "--implementation", "cp", "--abi", "cp310"),
        *("--platform", "manylinux2014_x86_64", "--platform", "any"),
    ),
)

PANOPTICAPI = Package(
    # Runs unchanged with numpy 2, and says that it does not.
    name="panopticapi-lite",
    version="0.2.0",
    sha256="58d3ffa842a72240162e7fa744c602a0a5320baabbdb3295d770374f4639b486",
    numpy=("numpy<2.0.0,>=1.23.5", "numpy>=1.23.5"),
)


def repack(package: Package, wheel: Path, folder: Path, run_wheel: Callable[..., object]) -> Path:
    """Change a published wheel and pack it for every Python 3.

    Args:
        package: what is to be changed.
        wheel: path of the downloaded file.
        folder: an existing folder to work in.
        run_wheel: called with the arguments of `python -m wheel`.

    Returns:
        The path of the repacked wheel.

    Raises:
        SystemExit: the file is not the tested one, or lacks lines that are to be changed.
    """
    check_digest(wheel, package.sha256)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        run_wheel("unpack", wheel, "--dest", work)
        (content,) = Path(work).iterdir()
        for pattern in package.dropped:
            for path in content.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for edit in package.edits:
            apply(edit, content, wheel.name)
        rewrite_metadata(package, content, wheel.name)
        out = folder / f"repacked-{package.name}"
        out.mkdir()
        run_wheel("pack", content, "--dest-dir", out)
    (packed,) = out.iterdir()
    return packed


def check_digest(wheel: Path, sha256: str) -> None:
    """Raises SystemExit if the file's SHA-256 is another one."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != sha256:
        raise SystemExit(
            f"error: {wheel.name} is not the file that was tested, and is not installed: its "
            f"sha256 is {digest}, not {sha256}. Check which package index pip uses: pip config list"
        )


def apply(edit: Edit, content: Path, wheel: str) -> None:
    """Make one edit in an unpacked wheel; raises SystemExit unless its lines occur once."""
    file = content / edit.file
    text = file.read_text() if file.is_file() else ""
    if text.count(edit.before) != 1:
        raise SystemExit(
            f"error: {edit.file} of {wheel} lacks the lines that tools/repack.py changes, or has "
            f"them more than once:\n{edit.before}"
        )
    file.write_text(text.replace(edit.before, edit.after))


def rewrite_metadata(package: Package, content: Path, wheel: str) -> None:
    """Version, tags, numpy's bound and top-level packages as they are after the edits."""
    (info,) = content.glob("*.dist-info")
    name = package.name.replace("-", "_")
    info = info.rename(content / f"{name}-{package.repacked_version}.dist-info")
    metadata = "METADATA"
    versions = Edit(metadata, f"\nVersion: {package.version}\n", "")
    apply(versions._replace(after=f"\nVersion: {package.repacked_version}\n"), info, wheel)
    if package.numpy:
        before, after = (f"Requires-Dist: {numpy}\n" for numpy in package.numpy)
        apply(Edit(metadata, before, after), info, wheel)
    _substitute(info / "WHEEL", r"^Tag: .*", "Tag: py3-none-any")
    _substitute(info / "WHEEL", r"^Root-Is-Purelib: .*", "Root-Is-Purelib: true")
    if (info / "top_level.txt").is_file():
        _substitute(info / "top_level.txt", r"^tools\n", "")


def _substitute(file: Path, pattern: str, replacement: str) -> None:
    """Replace what matches `pattern`, line by line."""
    file.write_text(re.sub(pattern, replacement, file.read_text(), flags=re.MULTILINE))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder to write the wheels to")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for package in (DETECTRON2, PANOPTICAPI):
            shutil.copy(fetch(Path(sys.executable), package, Path(folder)), output)


def fetch(python: Path, package: Package, folder: Path) -> Path:
    """Download a package of PyPI into `folder`, check it and repack it.

    Returns:
        The path of the repacked wheel.
    """
    say(f"Fetching {package.requirement}")
    to = ["--no-deps", "--only-binary=:all:", "--dest", folder]
    command = [python, "-m", "pip", "download", *to, *package.tag, package.requirement]
    run(command, pip_failed(package.name))
    (wheel,) = folder.glob(f"{package.name.replace('-', '_')}-*.whl")

    def run_wheel(*args: str | Path) -> None:
        run([python, "-m", "wheel", *args], f"Cannot repack {wheel.name}.")

    return repack(package, wheel, folder, run_wheel)


if __name__ == "__main__":
    main()
