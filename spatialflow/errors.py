"""Which errors are the user's mistakes, and how a command ends on one: one line, no traceback.

Readers and validators raise ``ValueError``, ``KeyError`` or ``OSError`` with a message that names
the file, key or id and says what to do. Such an error is the user's mistake where a ``raise``
statement of this package raised it, or one of the parts of Detectron2 that read configs, data and
weights. The same types raised by an expression (a key that a dict lacks), by torch or by the user's
own modules are bugs and keep their traceback. With ``--debug`` every error keeps it. Nothing here
needs torch.
"""

from __future__ import annotations

import ast
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READERS = {
    "spatialflow": ("",),
    "detectron2": ("config", "data", "solver", "checkpoint"),
    "fvcore": ("common",),
    "iopath": ("",),
}
"""Packages, and the folders in them, whose ``raise`` statements are about what the user gave."""

MISTAKES = (ValueError, KeyError, OSError, FloatingPointError)
"""Types of errors that these statements raise for the user."""

_TRACEBACK = "Traceback (most recent call last):\n"
_FRAME = re.compile(r'^ +File "(?P<file>[^"\n]+)", line \d+, in .+\n +(?P<line>.*)', re.M)
_ERROR = re.compile(r"^(?P<type>[\w.]+): (?P<message>.*)", re.M | re.S)
_SYSTEM = re.compile(r"\[Errno \d+\] .*: '")  # such as [Errno 2] No such file or directory: 'x'


class UserError(Exception):
    """Something the user gave is wrong; the message names the file or key and what to do."""


class UsageError(UserError):
    """The arguments of a command do not fit together; its exit code is 2."""


@contextmanager
def exit_on_user_error(debug: bool = False) -> Iterator[None]:
    """End the program with one line on stderr where the block raises what is the user's mistake.

    The exit code is 1, or 2 on a UsageError. Every other error is left alone.

    Args:
        debug: leave every error alone, for its traceback.
    """
    try:
        yield
    except Exception as e:
        message = None if debug else message_for_user(e)
        if message is None:
            raise
        if isinstance(e, UsageError):
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)
        sys.exit(f"error: {message}")


def message_for_user(error: Exception) -> str | None:
    """What to say of a user's mistake; None for any other error.

    Args:
        error: the exception as it was caught, or as a started process, a worker of a data loader
            or one of a process pool passed it on.
    """
    remote = _remote_traceback(error)
    if remote is not None:
        return _message_of_text(remote)
    if isinstance(error, UserError) or isinstance(error, OSError) and _SYSTEM.match(str(error)):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not _is_mistake(type(error), frames[-1].filename, frames[-1].line or ""):
        return None
    return _shown(type(error), str(error))


def _remote_traceback(error: Exception) -> str | None:
    """The traceback, as text, of an error that another process raised."""
    if type(error).__name__ == "ProcessRaisedException":  # torch's, of a started process
        return str(error)
    if str(error).startswith("Caught ") and _TRACEBACK in str(error):  # a data loader's worker
        return str(error)
    if type(error.__cause__).__name__ == "_RemoteTraceback":  # a process pool's worker
        return str(error.__cause__)
    return None


def _message_of_text(text: str) -> str | None:
    """As :func:`message_for_user`, of the error that the last traceback in a text ends with."""
    last = text.rpartition(_TRACEBACK)[2].rstrip().removesuffix('"""')
    frames, found = list(_FRAME.finditer(last)), _ERROR.search(last)
    if not frames or found is None:
        return None
    module, _, name = found["type"].rpartition(".")
    kind = getattr(sys.modules.get(module or "builtins"), name, Exception)
    message = found["message"].strip()
    if issubclass(kind, UserError) or issubclass(kind, OSError) and _SYSTEM.match(message):
        return message
    if not _is_mistake(kind, frames[-1]["file"], frames[-1]["line"]):
        return None
    return _shown(kind, message)


def _is_mistake(kind: type[Exception], file: str, line: str) -> bool:
    """Whether an error of this type is the user's mistake, raised by this line of this file."""
    if not issubclass(kind, MISTAKES) or not line.startswith("raise "):
        return False
    folders = (
        Path(root, folder)
        for package, names in READERS.items()
        for root in getattr(sys.modules.get(package), "__path__", ())
        for folder in names
    )
    return any(Path(file).is_relative_to(folder) for folder in folders)


def _shown(kind: type[Exception], message: str) -> str | None:
    """A message as the user gets it; without one, the error says nothing to the user."""
    if issubclass(kind, KeyError) and message[:1] in ("'", '"'):
        message = ast.literal_eval(message)  # the text of a KeyError is the repr of its message
    if message.endswith(" registry!"):  # fvcore's, of a name that nobody registered
        message += " Is it misspelt? A module that registers it is named by --import."
    return message or None
