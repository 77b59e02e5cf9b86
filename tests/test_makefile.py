"""The targets of the Makefile that take a folder."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from spatialflow.config import load_config

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/camvid/spatialflow_R_18_small.yaml"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make not found")


@pytest.fixture
def make(tmp_path):
    """Calls make on demo-street with an environment that counts as installed."""
    stamp = tmp_path / "installed"
    stamp.touch()

    def run(*arguments):
        command = ["make", "-s", *arguments, "demo-street", f"STAMP={stamp}", f"STREET={CONFIG}"]
        # What a make that runs these tests was given is not for this one.
        env = {k: v for k, v in os.environ.items() if k not in ("ARGS", "MAKEFLAGS", "MAKELEVEL")}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    return run


def commands_of(done):
    """The arguments of each ``spatialflow`` command that ``make -n`` printed, by its name."""
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    called = (shlex.split(line) for line in lines if "/spatialflow " in line)
    return {arguments[1]: arguments[2:] for arguments in called}


def registered(commands):
    """DATASETS.REGISTER of the config that the training has."""
    _, config, *opts = commands["train"]
    return load_config(str(ROOT / config), opts).DATASETS.REGISTER


def test_demo_street__a_public_layout_is_converted_first(make, tmp_path):
    commands = commands_of(make("-n", f"CAMVID={tmp_path}"))
    assert list(commands) == ["convert", "train", "draw"]
    output = commands["convert"][commands["convert"].index("--output") + 1]
    assert [entry[1] for entry in registered(commands)] == [f"{output}/train", f"{output}/val"]


def test_demo_street__a_panoptic_folder_is_used_as_it_is(make, tmp_path):
    (tmp_path / "panoptic_train.json").touch()
    commands = commands_of(make("-n", f"CAMVID={tmp_path}"))
    assert list(commands) == ["train", "draw"]
    for split, entry in zip(("train", "val"), registered(commands), strict=True):
        paths = (split, f"panoptic_{split}", f"panoptic_{split}.json")
        assert entry == [f"camvid_panoptic_{split}", *(str(tmp_path / p) for p in paths)]
    opts = commands["draw"][commands["draw"].index("--opts") + 1 :]
    assert load_config(str(ROOT / CONFIG), opts).MODEL.WEIGHTS.endswith("model_final.pth")


def test_demo_street__no_folder(make):
    done = make()
    assert done.returncode == 2
    assert "error: name CamVid's folder: make demo-street CAMVID=FOLDER" in done.stderr
