"""No command writes over a file that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable

PathLike = str | os.PathLike


def refuse_overwriting(
    outputs: Iterable[PathLike], inputs: Iterable[PathLike], option: str = "--output"
) -> None:
    """Refuse to write to a path that is an input, under whatever name.

    Links are followed, and files that are one by a hard link or by a file system that ignores case
    are found too. To be called before any work.

    Args:
        outputs: files and folders that are to be written; they need not exist.
        inputs: files and folders that are read.
        option: the command-line option to change, for the message.

    Raises:
        ValueError: an output is an input.
    """
    read = {key: path for path in inputs for key in _keys(path)}
    for output in outputs:
        path = next((read[key] for key in _keys(output) if key in read), None)
        if path is not None:
            raise ValueError(
                f"{output} would be written over the input {path}; give another {option}."
            )


def _keys(path: PathLike) -> list[object]:
    """What two names of one file have in common."""
    keys: list[object] = [os.path.realpath(path)]
    try:
        status = os.stat(path)
    except OSError:
        return keys
    return [*keys, (status.st_dev, status.st_ino)]
