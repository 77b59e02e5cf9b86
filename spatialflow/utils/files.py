"""Files that are read with one clear error, and written completely or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np


def read_json(path: str | os.PathLike, kind: str = "JSON", advice: str = "") -> Any:
    """The content of a JSON file.

    Args:
        path: path of the file.
        kind: what the file is, the start of the message.
        advice: what to do when it is not found, the end of the message.

    Raises:
        FileNotFoundError: it is not found.
        ValueError: it is not valid JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as e:
        message = f"{kind} {path} not found{'; ' if advice else ''}{advice}."
        raise FileNotFoundError(message) from e
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is not valid JSON: {e}") from e


def write_json(path: str, content: Any, indent: int | None = None) -> None:
    """Write a JSON file, which changes only once all of it is on the disk."""
    with atomic_write(path, "w") as f:
        json.dump(content, f, indent=indent)


def without_nan(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_image(path: str, pixels: np.ndarray) -> None:
    """Write an image in the format that the name ends with.

    Args:
        path: path of the file.
        pixels: (H, W) or (H, W, 3), channels in BGR order, of a type that the format has.

    Raises:
        OSError: it cannot be written there, or not all of it.
    """
    encoded, content = cv2.imencode(os.path.splitext(path)[1], pixels)
    if not encoded:
        raise OSError(f"Image {path} could not be written.")
    # By Python, which says why that fails; cv2.imwrite does not see that a disk is full.
    try:
        with open(path, "wb") as f:
            f.write(content.tobytes())
    except OSError as e:
        raise OSError(f"Image {path} could not be written: {e.strerror}.") from e


def digest_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """A name to write to, which becomes ``path`` when the block ends without an error."""
    partial = f"{path}.partial"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


@contextmanager
def atomic_write(path: str, mode: str) -> Iterator[IO]:
    """Open ``path`` for writing so that it changes only once all of it is on the disk."""
    with replacing(path) as partial, open(partial, mode) as f:
        yield f
        f.flush()
        os.fsync(f.fileno())


def publish_folder(partial: str, path: str) -> None:
    """Give a folder its final name once all of it is on the disk.

    Where another process was faster, its folder stays and this one is removed.

    Args:
        partial: the folder, on the same file system.
        path: the final name.
    """
    folders = list(os.walk(partial, topdown=False))
    files = [os.path.join(folder, file) for folder, _, names in folders for file in names]
    with ThreadPoolExecutor(8) as pool:  # a file system writes several at once
        list(pool.map(_sync, files))
    for folder, *_ in folders:
        _sync(folder)
    try:
        os.rename(partial, path)
    except OSError:
        if not os.path.isdir(path):
            raise
        shutil.rmtree(partial, ignore_errors=True)
    _sync(os.path.dirname(path))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
