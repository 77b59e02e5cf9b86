"""The converters' command line."""

import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from spatialflow.cli import run_command
from spatialflow.tools.convert.command import parser

main = partial(run_command, "convert")

README = Path(__file__).parents[3] / "datasets" / "README.md"


def test_the_commands_of_the_readme_are_understood():
    text = README.read_text().replace("\\\n", " ")
    commands = re.findall(r"spatialflow convert ([^\n`]*)", text)
    complete = [c for c in commands if "..." not in c and "--help" not in c]
    assert {c.split()[0] for c in complete} == {
        "cityscapes",
        "mapillary",
        "ade20k",
        "pairs",
        "camvid",
    }
    for command in complete:
        parser().parse_args(shlex.split(command))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "required: CONVERTER"),
        ("kitti", "invalid choice: 'kitti'"),
        ("mapillary", "required: --version"),
        ("mapillary --version v1.2 --max-size 0", "--max-size: 0 is not above 0"),
        ("pairs --images a --categories b --output c", "--instances --instance-pngs is required"),
        (
            "pairs --images a --categories b --output c --instances d --instance-pngs e",
            "not allowed",
        ),
    ],
)
def test_wrong_usage_exits_with_2(command, message, capsys):
    with pytest.raises(SystemExit) as e:
        main(command.split())
    assert e.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("cityscapes --root absent", "error: There is no annotation absent/gtFine/train/"),
        ("mapillary --version v2.0 --root absent", "error: Mapillary Vistas v2.0 not found"),
        ("ade20k --root absent", "error: Class list absent/objectInfo150.txt not found"),
        (
            "pairs --images absent --categories c --instances i --output o",
            "error: JSON c not found",
        ),
    ],
)
def test_missing_data_is_one_message(command, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^{message}"):
        main(command.split())


def test_it_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "spatialflow", "convert", "ade20k", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "objectInfo150.txt not found" in done.stderr
    assert "Traceback" not in done.stderr
