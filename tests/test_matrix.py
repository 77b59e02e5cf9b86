"""The matrix of supported versions: what it would run, and how it reads the results."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matrix
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1861 passed, 3 skipped, 2 warnings in 381.28s (0:06:21)", "1861 passed, 3 skipped"),
        ("1 failed, 5 passed in 2.00s", "1 failed, 5 passed"),
        ("2 errors in 0.10s", "2 errors"),
        ("Killed", "Killed"),
    ],
)
def test_counts_of_the_last_line(line, expected):
    assert matrix.counts(line) == expected


def test_a_python_that_is_not_here_is_left_out():
    assert matrix.find_python("2.1") is None


def test_the_python_of_this_environment_is_found_without_the_environment():
    version = "{}.{}".format(*sys.version_info)
    python = matrix.find_python(version)
    if python:  # the one it was made from may have another name
        assert Path(python).resolve() != Path(sys.executable) or sys.prefix == sys.base_prefix


def test_corners_replace_what_is_pinned():
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    for corner in matrix.CORNERS:
        assert {text.partition("==")[0] for text in corner.replace} <= pinned


def test_oldest_and_newest_corner_have_the_versions_of_the_constraints():
    corners = {corner.name: corner for corner in matrix.CORNERS}
    assert not corners["oldest"].replace and not corners["newest"].replace
    lines = re.findall(r"^numpy==(\S+) ; (.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert {f"numpy=={version}" for version, _ in lines} == {matrix.NUMPY_1, matrix.NUMPY_2}


def test_ci_runs_the_corners():
    script = (ROOT / ".ci" / "run").read_text()
    assert "matrix.py --corners newest" in script and "make test" in script
