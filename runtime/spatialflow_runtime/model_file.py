"""Metadata of an ``.onnx`` file, read without the package onnx and without loading the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .metadata import EXPORT_AGAIN, ModelFileError

METADATA_PROPS = 14
"""Number of the field of a ModelProto in which strings lie by key (onnx.proto)."""
_KEY, _VALUE = 1, 2
_VARINT, _LENGTH = 0, 2


def onnx_metadata(path: Path) -> dict[str, str]:
    """The strings by key in the metadata of an ONNX file.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ModelFileError: it is damaged or no ONNX file.
    """
    found = {}
    try:
        with path.open("rb") as file:
            end = path.stat().st_size
            for number, content in _fields(file, end, wanted=METADATA_PROPS):
                if number == METADATA_PROPS:
                    key, value = _entry(content)
                    found[key] = value
    except (EOFError, UnicodeDecodeError, ValueError) as e:
        raise ModelFileError(
            f"{path} is damaged, incomplete or no ONNX file; copy it again, or {EXPORT_AGAIN}."
        ) from e
    return found


def _fields(file: BinaryIO, end: int, wanted: int) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field of a protobuf message; content of the wanted ones only."""
    while file.tell() < end:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _varint(file)
            continue
        if kind != _LENGTH:
            raise ValueError(f"field {number} of kind {kind}")
        length = _varint(file)
        if file.tell() + length > end:
            raise EOFError
        if number == wanted:
            yield number, file.read(length)
        else:
            file.seek(length, 1)


def _entry(content: bytes) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    parts, at = {}, 0
    while at < len(content):
        number = content[at] >> 3
        length, at = _varint_of(content, at + 1)
        parts[number] = content[at : at + length].decode()
        at += length
    return parts.get(_KEY, ""), parts.get(_VALUE, "")


def _varint(file: BinaryIO) -> int:
    value, shift = 0, 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise EOFError
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
        shift += 7


def _varint_of(content: bytes, at: int) -> tuple[int, int]:
    """A number, and where the next byte is."""
    value, shift = 0, 0
    while True:
        if at >= len(content):
            raise EOFError
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            return value, at
        shift += 7
