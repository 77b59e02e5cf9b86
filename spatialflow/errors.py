"""How a command ends when what the user gave was wrong: one message, no traceback."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.multiprocessing import ProcessRaisedException


class UserError(Exception):
    """Something the user gave is wrong; the message names the file or key and what to do."""


@contextmanager
def reading_user_input() -> Iterator[None]:
    """Errors of readers and builders in this block are taken for the user's, not for bugs.

    Raises:
        UserError: from the KeyError, ValueError or OSError that the block raised, with the place
            it came from, so that a bug that lands here can be found.
    """
    try:
        yield
    except (KeyError, ValueError, OSError) as e:
        raise UserError(f"{_message(e)} [{_place(e)}]") from e


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the program with exit code 1 and one message on stderr where the user can do something.

    That is on a UserError or a loss that is not finite, also in a process that the block started.
    Every other error keeps its traceback.
    """
    try:
        yield
    except (UserError, FloatingPointError) as e:
        sys.exit(f"error: {e}")
    except ProcessRaisedException as e:
        # The message ends with the traceback of the process, and that with "type: message".
        found = re.search(r"^(?:\S+\.UserError|FloatingPointError): (.*)", str(e), re.M | re.S)
        if not found:
            raise
        sys.exit(f"error: {found[1].strip()}")


def _message(e: Exception) -> str:
    text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
    if text.startswith("Caught "):  # by a worker of a data loader, whose traceback comes first
        text = text.rpartition(f"{type(e).__name__}: ")[2].strip()
    return text


def _place(e: Exception) -> str:
    frame = traceback.extract_tb(e.__traceback__)[-1]
    return f"{type(e).__name__} in {Path(frame.filename).name}, line {frame.lineno}"
