"""Calls of pip for `tools/install.py`: within pinned versions, and failing with one message.

Needs nothing but the standard library.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"

# Settings of the caller that would send pip elsewhere than into the new environment.
UNWANTED_SETTINGS = ("PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_CONSTRAINT")

# What a PyTorch asks for in one exact version, so that another PyTorch needs others.
OF_TORCH = ("nvidia-", "cuda-", "triton")


class Pip(NamedTuple):
    """How packages are installed.

    Attributes:
        python: of the environment.
        wheels: the only folder to install from; None: the package index.
        replace: requirements that stand instead of the constraints of the same packages.
        constraints: path of the file of versions.
    """

    python: Path
    wheels: Path | None = None
    replace: Sequence[str] = ()
    constraints: Path = CONSTRAINTS

    def install(self, what: str, *args: str | Path) -> None:
        """`pip install` within the constraints, with pip's own progress."""
        say(f"Installing {what}")
        offline = ["--no-index", "--find-links", self.wheels.resolve()] if self.wheels else []
        self._run("install", pip_failed(what), *offline, *args)

    def build(self, folder: Path, *args: str | Path) -> None:
        """`pip wheel`: the wheels of packages and of what they need, into a folder."""
        say("Collecting wheels")
        self._run("wheel", pip_failed("the wheels"), "--wheel-dir", folder, *args)

    def _run(self, verb: str, failed: str, *args: str | Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            constraints = Path(folder) / "constraints.txt"
            constraints.write_text(replaced(self.constraints.read_text(), self.replace))
            # Without isolation, source packages are built by the setuptools installed first, not
            # by whichever is the newest that day.
            pip = [self.python, "-m", "pip", verb, "--no-build-isolation", "-c", constraints]
            run([*pip, *args], failed)


def replaced(constraints: str, requirements: Sequence[str]) -> str:
    """Constraints with other versions of some packages."""
    names = {_name(text) for text in requirements}
    free = OF_TORCH if "torch" in names else ()
    lines = [
        line
        for line in constraints.splitlines()
        if _name(line) not in names and not line.startswith(free)
    ]
    return "\n".join([*lines, *requirements, ""])


def _name(requirement: str) -> str:
    return re.split(r"[=<>!~ ]", requirement)[0]


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
