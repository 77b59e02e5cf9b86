"""Reading weights files without running code from them.

A pickle is a program. ``.pth`` files go through torch's restricted loader; Detectron2's model-zoo
``.pkl`` files go through an unpickler that knows numeric numpy arrays and builtin containers, and
stops at the first other thing that the file asks for.
"""

from __future__ import annotations

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any

import numpy as np
import torch

REFUSAL = (
    "{path} asks for {what}, which is neither a tensor nor a plain container; loading it could "
    "run code from the file, so it is refused. Use weights from a source that stores tensors only."
)


def load_tensors(path: str) -> Any:
    """Read a weights file of tensors or numeric numpy arrays in builtin containers.

    Args:
        path: a local file; ``.pkl`` is read as Detectron2's model zoo writes it (Python 2 pickles
            too), ``.safetensors`` by safetensors, everything else as written by ``torch.save``.

    Returns:
        What the file holds, usually a dict; tensors are on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or asks for anything that could run code; the message
            names the file and what it asked for.
    """
    read = _READERS.get(os.path.splitext(path)[1], _read_torch)
    try:
        return read(path)
    except FileNotFoundError as e:
        raise FileNotFoundError(f"Weights file {path} not found.") from e
    except (OSError, MissingPackage):
        raise
    except _Refused as e:
        raise ValueError(REFUSAL.format(path=path, what=e)) from e
    except Exception as e:  # unpickling damaged bytes can raise anything
        raise ValueError(f"{path} is no weights file, or is damaged ({type(e).__name__}).") from e


class MissingPackage(ValueError):
    """A file needs a package that is not installed; the message says how to install it."""


class _Refused(Exception):
    """Carries the name of what a file asked for."""


def _read_torch(path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        asked = re.search(r"(?:GLOBAL |find_class: |global )([\w.]+\.[\w.]+)", str(e))
        if asked:
            raise _Refused(asked[1]) from e
        raise


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as f:
        return _ArrayUnpickler(f, encoding="latin1").load()


def _read_safetensors(path: str) -> Any:
    return import_safetensors().load_file(path)


_READERS = {".pkl": _read_pickle, ".safetensors": _read_safetensors}


def import_safetensors() -> ModuleType:
    """``safetensors.torch``; a :class:`MissingPackage` where it is not installed."""
    try:
        import safetensors.torch
    except ModuleNotFoundError as e:
        raise MissingPackage(
            "Files .safetensors need safetensors, which is not installed: "
            "pip install 'spatialflow[safetensors]'"
        ) from e
    return safetensors.torch


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numeric numpy arrays and builtin containers.

    None of numpy's own constructors is handed out: ``numpy.ndarray`` called with an object type
    and a buffer would read arbitrary memory. The pickle gets the methods below in their place.
    """

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core.", "numpy.core.").replace("__builtin__", "builtins")
        admitted = {
            ("numpy", "ndarray"): None,  # only ever the first argument of _reconstruct
            ("numpy", "dtype"): self._dtype,
            ("numpy.core.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy.core.multiarray", "scalar"): self._scalar,
            ("numpy.core.numeric", "_frombuffer"): self._frombuffer,
            ("_codecs", "encode"): self._encode,
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("builtins", "frozenset"): frozenset,
            ("builtins", "bytearray"): bytearray,
            ("builtins", "bytes"): bytes,
        }
        if (module, name) not in admitted:
            raise _Refused(f"{module}.{name}")
        found = admitted[module, name]
        return _Call(found) if isinstance(found, MethodType) else found

    def _dtype(self, code: str, *_: Any) -> _NumericType:
        return _NumericType(code)

    def _reconstruct(self, *_: Any) -> _Array:
        return np.empty(0, np.uint8).view(_Array)

    def _scalar(self, numeric: _NumericType, data: bytes | str) -> np.generic:
        return np.frombuffer(self._encode(data), numeric.dtype)[0]

    def _frombuffer(
        self, data: bytes, numeric: _NumericType, shape: tuple, order: Any
    ) -> np.ndarray:
        array = np.frombuffer(data, numeric.dtype).reshape(shape, order=order)
        return array.astype(numeric.dtype.newbyteorder("="))  # torch knows no other byte order

    def _encode(self, data: bytes | str, *_: Any) -> bytes:
        # Python 3 writes bytes into old pickle protocols as text to be encoded in latin1.
        return data.encode("latin1") if isinstance(data, str) else bytes(data)


class _Call:
    """A function for a pickle to call: its own copy, and one that takes no attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("attributes of a function")


class _NumericType:
    """Stands for a ``numpy.dtype`` while unpickling."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code) if isinstance(code, str) else np.dtype("O")
        if self.dtype.kind not in "biufc":
            raise _Refused(f"a numpy array of {code}")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array under reconstruction."""

    def __setstate__(self, state: tuple) -> None:
        version, shape, numeric, fortran_order, data = state
        if not isinstance(numeric, _NumericType):
            raise _Refused("a numpy array without an element type")
        super().__setstate__((version, shape, numeric.dtype, fortran_order, data))
