"""One client a folder: the lock is the kernel's, so that it goes with its owner."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spatialflow.errors import UserError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder.

    Yields:
        Whether it is held; not, where the file system has no locks. Two clients do no harm there,
        and some work twice.

    Raises:
        UserError: another client has it.
    """
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            owner = os.read(descriptor, 200).decode() or "another process"
            os.close(descriptor)
            raise UserError(
                f"{folder} is being written by {owner}. Wait for it or stop it; its work is kept."
            ) from e
        except OSError as e:
            os.close(descriptor)
            if e.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            yield False
            return
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # its owner has just removed it
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield True
    finally:
        os.unlink(path)
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
