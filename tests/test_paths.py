"""Outputs that are inputs are refused."""

import os
import shutil
from pathlib import Path

import pytest
from panoptic_scenes import two_images, write_panoptic, write_results

from spatialflow.cli import run_command
from spatialflow.paths import refuse_overwriting


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    path.write_text("pixels")
    return path


def test_other_files_pass(picture, tmp_path):
    refuse_overwriting([tmp_path / "new.png", tmp_path / "new" / "picture.png"], [picture])
    refuse_overwriting([], [picture])
    refuse_overwriting([picture], [])


def test_the_message_names_both_and_what_to_change(picture):
    with pytest.raises(ValueError, match=r"picture\.png .* give another --json-out") as error:
        refuse_overwriting([picture], [picture], "--json-out")
    assert str(error.value).count(str(picture)) == 2


def test_a_file_is_known_under_every_name(picture, tmp_path, monkeypatch):
    (tmp_path / "soft.png").symlink_to(picture)
    os.link(picture, tmp_path / "hard.png")
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("picture.png", "./picture.png", "folder/picture.png", "soft.png"):
        with pytest.raises(ValueError):
            refuse_overwriting([name], [picture])
    with pytest.raises(ValueError):
        refuse_overwriting(["hard.png"], [picture])


def test_an_output_that_is_not_there_yet_may_be_a_link_to_an_input_that_is_not(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    with pytest.raises(ValueError):
        refuse_overwriting([tmp_path / "link"], [tmp_path / "missing"])


def test_folders_are_compared_as_files_are(tmp_path):
    with pytest.raises(ValueError):
        refuse_overwriting([str(tmp_path) + os.sep], [tmp_path])


# The commands themselves: an output that is an input ends in one message, and the input stays.


def refused(capsys, command, argv, *inputs):
    """Whether a command refuses its arguments and leaves files as they are."""
    before = [Path(path).read_bytes() for path in inputs]
    with pytest.raises(SystemExit) as stop:
        run_command(command, [str(a) for a in argv])
    message = f"{stop.value} {capsys.readouterr().err}"
    assert "would be written over the input" in message, message
    assert "Traceback" not in message
    return [Path(path).read_bytes() for path in inputs] == before


@pytest.fixture
def scored(tmp_path):
    """JSONs of two images and their predictions."""
    truth = write_panoptic(tmp_path, two_images())[2]
    predictions = str(write_results(tmp_path, dict(enumerate(two_images()))))
    return predictions, truth, ["--json", truth, "--panoptic", tmp_path / "png", "--workers", 1]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("option", ["--json-out", "--csv-out"])
def test_score(scored, capsys, side, option):
    *paths, arguments = scored
    argv = [paths[0], *arguments, option, paths[side]]
    assert refused(capsys, "score", argv, *paths)


@pytest.mark.parametrize("side", [0, 1])
def test_explain(scored, capsys, side):
    *paths, arguments = scored
    argv = [paths[0], *arguments, "--json-out", paths[side]]
    assert refused(capsys, "explain", argv, *paths)


def test_check(scored, tmp_path, capsys):
    _, truth, arguments = scored
    argv = [*arguments, "--images", tmp_path / "images", "--json-out", truth]
    assert refused(capsys, "check", argv, truth)


@pytest.mark.parametrize("output", ["images", "png", "numbers", "panoptic", "classes"])
def test_convert_pairs(tmp_path, capsys, output):
    """--output X is the folder X and the file X.json."""
    write_panoptic(tmp_path, two_images())
    (tmp_path / "numbers").symlink_to(tmp_path / "png")
    shutil.copy(tmp_path / "panoptic.json", tmp_path / "classes.json")
    argv = ["pairs", "--images", tmp_path / "images", "--semantic", tmp_path / "png"]
    argv += ["--categories", tmp_path / "classes.json", "--output", tmp_path / output]
    kind = "--instances" if output == "panoptic" else "--instance-pngs"
    argv += [kind, tmp_path / ("panoptic.json" if output == "panoptic" else "numbers")]
    inputs = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert refused(capsys, "convert", argv, *inputs)


def test_class_activation(tmp_path, capsys):
    picture, weights = tmp_path / "a.png", tmp_path / "w.pth"
    picture.write_text("pixels")
    weights.write_text("weights")
    for output in (picture, weights):
        argv = ["--input", picture, "--output", output, "--model", "mine", "c.yaml", weights]
        assert refused(capsys, "heatmap", argv, picture, weights)


def test_conversion_of_a_checkpoint(tmp_path, capsys):
    checkpoint = tmp_path / "theirs.pth"
    checkpoint.write_text("weights")
    config = "configs/released/spatialflow_R_50_20e.yaml"
    argv = [checkpoint, checkpoint, "--config-file", config]
    assert refused(capsys, "convert-checkpoint", argv, checkpoint)
