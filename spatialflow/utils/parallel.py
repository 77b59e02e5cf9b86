"""Work on many files in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from types import FrameType
from typing import TypeVar

import cv2

Job = TypeVar("Job")
Result = TypeVar("Result")

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
"""Signals by which a batch system asks a run to stop; it sends them to all of its processes."""


def in_parallel(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[Result]:
    """Results of a function in the order of the jobs.

    Args:
        function: can be pickled, like jobs and results, when there are several workers.
        jobs: arguments of its calls.
        workers: number of processes; with 1, this one does the work.

    Raises:
        BrokenProcessPool: a process died, for instance out of memory.
        Exception: whatever the function raises; jobs that have not started are cancelled.
    """
    if workers <= 1:
        yield from map(function, jobs)
        return
    pool = ProcessPoolExecutor(workers, initializer=_start_worker)
    try:
        yield from pool.map(function, jobs, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # The workers take all cores; OpenCV need not have threads of its own in each.
    cv2.setNumThreads(0)
    end_with_parent()


def end_with_parent(worker_id: int = 0) -> None:
    """Let this worker process end when its parent does, whatever it is doing then.

    Without this, the workers of a process that is killed would wait for it forever. PyTorch's
    own workers check only between two samples, and not while their results are not taken.

    Args:
        worker_id: not used; with it, this is a ``worker_init_fn`` of a data loader.
    """
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


@contextmanager
def on_stop_signal(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call a function on STOP_SIGNALS while the block runs.

    Outside the main thread, where Python does not let one, they do what they did before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def leave_stopping_to_parent() -> None:
    """Let this worker of a data loader end on STOP_SIGNALS from its parent, and on no others.

    The parent still needs it for the iteration that it is in when the run is asked to stop. Without
    ``sigwaitinfo``, as on macOS, they do what they did before.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # in threads that start from now on
        threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(pid: int) -> None:
    while signal.sigwaitinfo(STOP_SIGNALS).si_pid != pid:
        pass
    os._exit(0)


def _wait_for_parent(pid: int) -> None:
    # Workers that were forked later keep the sentinel open, hence the look at the number; that
    # never changes on Windows, where nothing is forked.
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that was started has a parent"
    sentinel = parent.sentinel
    while not connection.wait([sentinel], timeout=1) and os.getppid() == pid:
        pass
    os._exit(1)
