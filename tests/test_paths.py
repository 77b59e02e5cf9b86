"""Outputs that are inputs are refused."""

import os

import pytest

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
