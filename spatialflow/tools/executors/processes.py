"""Processes of this machine. One that dies, or is over its time, is replaced; the others go on."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2

from spatialflow.errors import UsageError
from spatialflow.utils.parallel import end_with_parent

from . import Settings

number = 0
"""Which of the processes this one is, from 0 on; the GPU goes by it."""


class Processes:
    """See :class:`spatialflow.tools.executors.Executor`."""

    def __init__(self, settings: Settings) -> None:
        if settings.scheduler is not None:
            raise UsageError("--scheduler is for --executor dask and --executor ray.")
        self._workers = settings.workers
        self._deadline = settings.deadline
        # One pool a process: a pool whose process dies takes all its tasks with it.
        self._pools = [_start(i) for i in range(settings.workers)]
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(settings.workers):
            self._idle.put(i)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        worker = self._idle.get()
        try:
            future = self._pools[worker].submit(function, *args)
        except BrokenProcessPool:  # it died between two tasks
            self._pools[worker] = _start(worker)
            future = self._pools[worker].submit(function, *args)
        timer = threading.Timer(self._deadline or 0, _kill, [self._pools[worker]])
        timer.daemon = True
        if self._deadline is not None:
            timer.start()

        def give_back(future: Future) -> None:
            timer.cancel()
            if _is_broken(future):
                self._pools[worker] = _start(worker)
            self._idle.put(worker)

        future.add_done_callback(give_back)
        return future

    def slots(self) -> int:
        return self._workers

    def close(self) -> None:
        for pool in self._pools:
            _kill(pool)
            pool.shutdown(wait=False, cancel_futures=True)


def _start(worker: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork would share threads and CUDA
    return ProcessPoolExecutor(1, context, initializer=_begin, initargs=(worker,))


def _begin(worker: int) -> None:
    global number
    number = worker
    # The parent decides when work ends: a batch system sends its signals to every process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)
    end_with_parent()


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()


def _is_broken(future: Future) -> bool:
    return not future.cancelled() and isinstance(future.exception(), BrokenProcessPool)
