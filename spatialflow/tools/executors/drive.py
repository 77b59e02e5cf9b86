"""Tasks through an executor: a bounded number in flight, again where a worker was lost."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from spatialflow.errors import message_for_user

from . import Executor

Task = TypeVar("Task")
TRIES = 6
"""How often a task is tried. A picture that kills its worker becomes an error row in the fourth."""
_END = object()
_alone = threading.Lock()


@dataclass(frozen=True)
class Failure:
    """Why a task was given up after :data:`TRIES` tries."""

    message: str


def drive(
    executor: Executor,
    function: Callable[[Task], Any],
    tasks: Iterable[Task],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Task, Any]]:
    """Tasks with their results, or a :class:`Failure`, in the order in which they are done.

    A task whose worker was lost, or that failed for no fault of the user's, is tried again. What
    is a mistake of the user's, or a full disk, ends the work: no task is begun after it, those in
    flight are finished.

    Args:
        executor: runs the tasks.
        function: of one task; it and the tasks can be pickled.
        tasks: taken one by one, as there is room for them.
        stop: once it is true, no further task is begun.

    Raises:
        Exception: see above.
    """
    tasks, again = iter(tasks), deque[tuple[Any, int]]()
    running: dict[Future, tuple[Any, int]] = {}
    fatal: BaseException | None = None
    while True:
        while fatal is None and not stop() and len(running) < max(1, executor.slots()):
            task, tries = again.popleft() if again else (next(tasks, _END), 0)
            if task is _END:
                break
            running[executor.submit(_run_alone, function, task)] = task, tries + 1
        if not running:
            break
        for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
            task, tries = running.pop(future)
            error = _error_of(future)
            if error is None:
                yield task, future.result()
            elif _is_fatal(error):
                fatal = fatal or error
            elif tries < TRIES:
                again.append((task, tries))
            else:
                yield task, Failure(f"{type(error).__name__}: {error}")
    if fatal is not None:
        raise fatal


def in_order(
    executor: Executor, function: Callable[[Any], Any], jobs: Sequence[Any], chunk: int = 32
) -> Iterator[Any]:
    """Results of a function in the order of the jobs, as :func:`.in_parallel` has them.

    Args:
        executor: runs the calls.
        function: of one job.
        jobs: arguments of the calls.
        chunk: calls a task.

    Raises:
        RuntimeError: a task failed in all its tries.
        Exception: see :func:`drive`.
    """
    starts = range(0, len(jobs), chunk)
    chunks = [(start, function, jobs[start : start + chunk]) for start in starts]
    early: dict[int, list[Any]] = {}
    due = 0
    for (start, _, _), results in drive(executor, _apply, chunks):
        if isinstance(results, Failure):
            raise RuntimeError(f"{TRIES} tries failed, the last one by {results.message}")
        early[start] = results
        while due in early:
            ready = early.pop(due)
            yield from ready
            due += len(ready)


def _apply(chunk: tuple[int, Callable[[Any], Any], Sequence[Any]]) -> list[Any]:
    _, function, jobs = chunk
    return [function(job) for job in jobs]


def _run_alone(function: Callable[[Any], Any], task: Any) -> Any:
    """One task at a time in a process, which has one model, whatever threads a cluster gives it."""
    with _alone:
        return function(task)


def _error_of(future: Future) -> BaseException | None:
    return RuntimeError("cancelled") if future.cancelled() else future.exception()


def _is_fatal(error: BaseException) -> bool:
    return isinstance(error, Exception) and message_for_user(error) is not None
