"""Files are read with one clear error and written completely or not at all."""

import math
import os

import numpy as np
import pytest

from spatialflow.utils.files import (
    atomic_write,
    publish_folder,
    read_json,
    replacing,
    without_nan,
    write_image,
    write_json,
)


def test_json_round_trip(tmp_path):
    path = str(tmp_path / "a.json")
    write_json(path, {"b": [1, None]}, indent=2)
    assert read_json(path) == {"b": [1, None]}
    assert os.listdir(tmp_path) == ["a.json"]


def test_json_that_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^Index .*a\.json not found; make it\.$"):
        read_json(tmp_path / "a.json", "Index", "make it")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[" * 100_000])
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_what_json_does_not_have_becomes_none():
    assert without_nan({"a": {"b": math.nan, "c": [1.0, math.inf]}, "d": "x", "e": (2,)}) == {
        "a": {"b": None, "c": [1.0, None]},
        "d": "x",
        "e": [2],
    }


@pytest.mark.parametrize("write", [replacing, lambda path: atomic_write(path, "w")])
def test_a_file_changes_when_it_is_complete(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), write(str(path)) as partial:
        f = open(partial, "w") if isinstance(partial, str) else partial  # noqa: SIM115
        f.write("half")
        f.flush()
        assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_image_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match=r"nowhere/a\.png could not be written"):
        write_image(str(tmp_path / "nowhere" / "a.png"), np.zeros((2, 2), np.uint8))


def test_a_folder_gets_its_name_whole_and_the_first_one_stays(tmp_path):
    for name, content in (("one", "1"), ("two", "2")):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / "below" / "file").write_text(content)
        publish_folder(str(tmp_path / name), str(tmp_path / "final"))
    assert os.listdir(tmp_path) == ["final"]
    assert (tmp_path / "final/below/file").read_text() == "1"
    with pytest.raises(FileNotFoundError):
        publish_folder(str(tmp_path / "gone"), str(tmp_path / "other"))
