"""Weights files are data: what they may hold, and what they must not be able to do."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from spatialflow.checkpoint import load_tensors


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def dump(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return str(path)


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_of_arrays_and_containers_reads_as_written(tmp_path, protocol):
    content = {
        "c order": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i2"),
        "empty": np.zeros((0, 3), np.float16),
        "scalar": np.float32(1.5),
    }
    plain = {"l": [1, (2.5, None, True)], "s": {3}, "b": b"\x00\xff", "o": OrderedDict(a=1)}
    loaded = load_tensors(dump(tmp_path / "w.pkl", {**content, **plain}, protocol))
    for key, value in content.items():
        np.testing.assert_array_equal(loaded[key], value)
        assert loaded[key].dtype == value.dtype.newbyteorder("=")
        assert loaded[key].shape == value.shape
    assert {k: loaded[k] for k in plain} == plain


def test_pickle_of_python_2_reads_as_latin1(tmp_path):
    # What Python 2 and numpy 1 wrote for {"w": array([1, 2], uint8)}: text for the array's bytes.
    script = (
        b"(dp0\nS'w'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\n"
        b"S'b'\np5\ntp6\nRp7\n(I1\n(I2\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n"
        b"(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS'\\x01\\xe9'\np15\ntp16\nbs."
    )
    (tmp_path / "w.pkl").write_bytes(script)
    np.testing.assert_array_equal(load_tensors(str(tmp_path / "w.pkl"))["w"], [1, 0xE9])


def test_pickle_names_of_numpy_2_are_admitted(tmp_path):
    text = pickle.dumps({"w": np.arange(3)}, protocol=0)
    text = text.replace(b"numpy.core.", b"numpy._core.")
    (tmp_path / "w.pkl").write_bytes(text)
    np.testing.assert_array_equal(load_tensors(str(tmp_path / "w.pkl"))["w"], [0, 1, 2])


@pytest.mark.parametrize("name", ["w.pkl", "w.pth", "w.pyth"])
def test_code_in_a_file_is_refused_by_name_and_does_not_run(tmp_path, name):
    path, victim = tmp_path / name, tmp_path / "created"
    content = {"model": {}, "extra": Payload(victim)}
    if name == "w.pkl":
        dump(path, content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"{name} asks for (posix|nt)\.mkdir"):
        load_tensors(str(path))
    assert not victim.exists()


def test_old_torch_format_is_refused_too(tmp_path):
    victim = tmp_path / "created"
    torch.save(Payload(victim), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="refused"):
        load_tensors(str(tmp_path / "w.pth"))
    assert not victim.exists()


@pytest.mark.parametrize(
    "script",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0btest.runner\x93.",
        b"cnumpy\nload\n.",
    ],
)
def test_other_globals_are_refused(tmp_path, script):
    (tmp_path / "w.pkl").write_bytes(script)
    with pytest.raises(ValueError, match="refused"):
        load_tensors(str(tmp_path / "w.pkl"))


@pytest.mark.parametrize(
    "name", [b"numpy\ndtype", b"numpy.core.multiarray\n_reconstruct", b"_codecs\nencode"]
)
@pytest.mark.parametrize("state", [b"(dS'kept'\nI1\ns", b"(N(dS'__doc__'\nS'x'\nst"])
def test_attributes_cannot_be_given_to_what_builds_the_arrays(tmp_path, name, state):
    script = b"c" + name + b"\n" + state + b"b."
    (tmp_path / "w.pkl").write_bytes(script)
    with pytest.raises(ValueError, match="asks for attributes of a function"):
        load_tensors(str(tmp_path / "w.pkl"))
    read = dump(tmp_path / "again.pkl", {"w": np.arange(2)})
    assert load_tensors(read)["w"].tolist() == [0, 1]


def test_arrays_of_objects_are_refused(tmp_path):
    # numpy would take the bytes of a buffer for pointers to objects.
    for content in (np.array([None, 1], dtype=object), np.zeros(1, dtype="i4,f4")):
        path = dump(tmp_path / "w.pkl", {"w": content})
        with pytest.raises(ValueError, match="a numpy array of"):
            load_tensors(path)
    direct = b"cnumpy\nndarray\n((I1\ntS'O'\nC\x08AAAAAAAAtR."
    (tmp_path / "w.pkl").write_bytes(direct)
    with pytest.raises(ValueError, match="damaged"):
        load_tensors(str(tmp_path / "w.pkl"))


@pytest.mark.parametrize("name", ["w.pkl", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"hello there", b"\x80\x02}q\x00("])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is no weights file, or is damaged"):
        load_tensors(str(tmp_path / name))


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": {"w": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"w\.pth is no weights file, or is damaged"):
        load_tensors(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pkl not found"):
        load_tensors(str(tmp_path / "nowhere.pkl"))
