#!/usr/bin/env python
"""Run the test suite with other Pythons, numpys and PyTorches; `make matrix` calls this.

    python tools/matrix.py                          # every corner whose Python this machine has
    python tools/matrix.py --corners newest --tests tests/modeling
    python tools/matrix.py --corners oldest --detectron2 ~/detectron2    # upstream's source

Each corner gets an environment of its own (5 to 6 GB), which is removed afterwards. With `--record`
the rows of docs/SUPPORT.md are replaced.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TABLE = "supported_versions"
COLUMNS = ("corner", "Python", "numpy", "PyTorch", "torchvision", "Detectron2", "tests", "date")

# Versions of what was installed, and "main" for a Detectron2 that is not the repacked one.
LIST_VERSIONS = """
from importlib.metadata import packages_distributions, version
import platform
print(platform.python_version(), *(version(n) for n in ("numpy", "torch", "torchvision")))
name = packages_distributions()["detectron2"][0]
print(f"{name} {version(name)}")
"""


class Corner(NamedTuple):
    """A Python, and requirements that stand instead of those of constraints.txt."""

    name: str
    python: str
    replace: tuple[str, ...] = ()


NUMPY_1, NUMPY_2 = "numpy==1.26.4", "numpy==2.4.6"
CORNERS = (
    Corner("oldest", "3.11"),
    Corner("3.11 with numpy 2", "3.11", (NUMPY_2,)),
    Corner("3.12 with numpy 1", "3.12", (NUMPY_1,)),
    Corner("3.12", "3.12"),
    Corner("newest", "3.13"),
    Corner("PyTorch 2.14", "3.11", ("torch==2.14.1",)),
    Corner("PyTorch 2.4", "3.11", ("torch==2.4.1", "torchvision==0.19.1")),
)


def main() -> None:
    """Command line; exit code 1 when tests fail in a corner."""
    args = parse()
    failed = False
    for corner in CORNERS:
        if args.corners and corner.name not in args.corners:
            continue
        python = find_python(corner.python)
        if python is None:
            print(f"==> {corner.name}: Python {corner.python} not found here, left out", flush=True)
            continue
        row, ok = try_corner(corner, python, args)
        failed |= not ok
        print(" | ".join(row), flush=True)
        if args.record:
            record(row)
    raise SystemExit(int(failed))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [corner.name for corner in CORNERS]
    parser.add_argument("--corners", nargs="+", choices=names, metavar="NAME", help=f"{names}")
    parser.add_argument("--tests", nargs="+", default=[], help="arguments of pytest")
    parser.add_argument("--detectron2", type=Path, help="folder of a source to build and test")
    parser.add_argument("--folder", type=Path, help="for the environments; default: temporary")
    parser.add_argument("--keep", action="store_true", help="do not remove the environments")
    parser.add_argument("--record", action="store_true", help="put the rows into docs/SUPPORT.md")
    return parser.parse_args()


def find_python(version: str) -> str | None:
    """The path of a Python X.Y: on PATH, or of pyenv or uv."""
    known = [shutil.which(f"python{version}")]
    known += sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    if shutil.which("uv"):
        found = subprocess.run(["uv", "python", "find", version], capture_output=True, text=True)
        known.append(found.stdout.strip())
    code = """
import ensurepip, sys
if sys.prefix == sys.base_prefix:  # not an environment made from it
    print("{}.{}".format(*sys.version_info), end="")
"""
    for python in filter(None, known):
        found = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if found.stdout == version:
            return python
    return None


def try_corner(corner: Corner, python: str, args: argparse.Namespace) -> tuple[list[str], bool]:
    """Install and test one corner.

    Returns:
        Its row of docs/SUPPORT.md, and whether all tests passed.
    """
    folder = tempfile.mkdtemp(dir=args.folder)
    venv = Path(folder) / "venv"
    try:
        command = [python, ROOT / "tools" / "install.py", "--fresh", "--venv", venv]
        command += ["--replace", *corner.replace] if corner.replace else []
        if call(command):
            return [corner.name, corner.python, *["-"] * 4, "cannot be installed", today()], False
        bin_python = venv / "bin" / "python"
        if args.detectron2:
            call([bin_python, "-m", "pip", "uninstall", "-y", "sal-detectron2"])
            build = ["install", "--no-build-isolation", "--no-deps", args.detectron2]
            call([bin_python, "-m", "pip", *build])
        log = Path(folder) / "tests.txt"
        tests = [bin_python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *args.tests]
        with open(log, "w") as f:
            failed = call(tests, stdout=f)
        last = log.read_text().strip().splitlines()[-1].strip("= ")
        if failed:
            print(log.read_text()[-20000:])
        listed = subprocess.run([bin_python, "-c", LIST_VERSIONS], capture_output=True, text=True)
        versions, _, detectron2 = listed.stdout.strip().partition("\n")
        return [corner.name, *versions.split(), detectron2, counts(last), today()], not failed
    finally:
        if not args.keep:
            shutil.rmtree(folder)


def call(command: Sequence[str | Path], **options) -> int:
    """The exit code of a command, run in the repository; its own imports come from there alone."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    args = [str(part) for part in command]
    return subprocess.run(args, cwd=ROOT, env=environment, check=False, **options).returncode


def counts(line: str) -> str:
    """How many tests passed, failed and were skipped, from pytest's last line."""
    found = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", line)
    return ", ".join(found) or line


def today() -> str:
    """The date."""
    return datetime.date.today().isoformat()


def record(row: list[str]) -> None:
    """Put a row into the table of docs/SUPPORT.md, in the place of the corner's former one."""
    from fill_results import fill_files

    from spatialflow.tools.zoo import measured

    empty = {"columns": list(COLUMNS), "align": ["---"] * len(COLUMNS), "rows": []}
    table = measured.tables().get(TABLE, empty)
    rows = {cells[0]: cells for cells in table["rows"]} | {row[0]: row}
    measured.save({TABLE: {**table, "rows": list(rows.values())}})
    fill_files()


if __name__ == "__main__":
    main()
