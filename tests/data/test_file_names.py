import ntpath
import os
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialflow.data.file_names import file_below, is_file_below

OUTSIDE = [
    "/a.png",
    "../a.png",
    "town/../../a.png",
    "..",
    ".",
    "town/..",
    "",
    "..\\a.png",
    "town\\..\\..\\a.png",
    "\\a.png",
    "C:\\a.png",
    "C:a.png",
    "\\\\host\\share\\a.png",
    5,
    None,
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_of_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="is not below some/folder; write it relative") as e:
        file_below("some/folder", name)
    assert repr(str(name)) in str(e.value)


@pytest.mark.parametrize("name", ["a.png", "town/a.png", "town/../a.png", "..a", "12:30.png", "é"])
def test_other_names_are_joined_as_they_are(name):
    assert file_below("some/folder", name) == os.path.join("some/folder", name)


@given(st.lists(st.sampled_from(["..", ".", "a", "C:", "/", "\\", ":", "b.png"]), max_size=8))
def test_what_is_taken_is_below_the_folder_on_every_system(parts):
    name = "".join(parts)
    if is_file_below(name):
        for path in (posixpath, ntpath):
            inside = path.normpath(path.join(path.sep + "root", name))
            assert inside.startswith(f"{path.sep}root{path.sep}"), (path.__name__, inside)
