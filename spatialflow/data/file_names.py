"""File names that a JSON gives, and the folder that they have to stay in."""

from __future__ import annotations

import ntpath
import os
from typing import Any

from .shards import file_in_shards, is_sharded


def is_file_below(name: Any) -> bool:
    """Whether a file name from a JSON, joined to a folder, is a file in it or in a subfolder.

    Absolute names are not, and neither are names that lead out of the folder by "..". The rules are
    those of Windows, which takes "\\" like "/" and knows drives, so that a dataset is judged alike
    on every system.
    """
    if not isinstance(name, str):
        return False
    drive, path = ntpath.splitdrive(name)
    first = ntpath.normpath(path).split("\\")[0]
    return not drive and first not in ("", ".", "..")


def file_below(folder: str, name: Any) -> str:
    """Path of the file that a JSON names in a folder, or in a sharded one (:mod:`.shards`).

    Raises:
        ValueError: the file would be outside the folder, see :func:`is_file_below`.
        FileNotFoundError: no shard has it; whether it is in a folder is not looked at.
    """
    if not is_file_below(name):
        raise ValueError(outside(name, folder))
    if is_sharded(folder):
        return file_in_shards(folder, name)
    return os.path.join(folder, name)


def outside(name: Any, folder: str = "its folder") -> str:
    """What is wrong with a name that :func:`is_file_below` refuses, and what to do."""
    return (
        f"file name {str(name)[:200]!r} is not below {folder}; write it relative to the folder, "
        "without '..' that leads out of it"
    )
