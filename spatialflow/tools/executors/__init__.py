"""Who does the work: processes of this machine, Dask or Ray, all behind one small interface.

    drive.py            tasks through an executor: bounded, retried, stopped
    processes.py        processes of this machine, the default
    dask_executor.py    Dask distributed: a cluster of the user's, or one on this machine
    ray_executor.py     Ray: plain tasks

To add one, put the function that opens it into :data:`EXECUTORS`, in a module that ``--import``
names.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from spatialflow.errors import UserError


@dataclass(frozen=True)
class Settings:
    """What executors are told.

    Attributes:
        workers: processes; those of a cluster that is there already are its own.
        scheduler: address of such a cluster; None: processes of this machine.
        deadline: seconds after which a task is given up; None: never. Tasks end themselves before,
            where they can.
    """

    workers: int = 1
    scheduler: str | None = None
    deadline: float | None = None


class Executor(Protocol):
    """Runs functions elsewhere. What is submitted can be pickled, and so can what comes back."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Run a function. The future has its result, its error, or the loss of its worker."""

    def slots(self) -> int:
        """How many tasks are to be in flight now."""

    def close(self) -> None:
        """Let the processes that this one started go."""


EXECUTORS: dict[str, str | Callable[[Settings], Executor]] = {
    "processes": "spatialflow.tools.executors.processes:Processes",
    "dask": "spatialflow.tools.executors.dask_executor:DaskExecutor",
    "ray": "spatialflow.tools.executors.ray_executor:RayExecutor",
}
"""What opens each executor, or where that is, ``MODULE:NAME``, imported when it is wanted."""


def open_executor(name: str, settings: Settings) -> Executor:
    """An executor by its name in :data:`EXECUTORS`.

    Raises:
        UserError: there is no such executor, or its package is not installed.
    """
    if name not in EXECUTORS:
        raise UserError(f"--executor is one of {', '.join(EXECUTORS)}, not {name!r}.")
    build = EXECUTORS[name]
    try:
        if isinstance(build, str):
            module, _, attribute = build.partition(":")
            build = getattr(import_module(module), attribute)
        return build(settings)
    except ModuleNotFoundError as e:
        extra = {"dask": "scale", "ray": "ray"}.get(name)
        if extra is None or e.name is None or e.name.split(".")[0] == "spatialflow":
            raise
        raise UserError(
            f"--executor {name} needs {e.name}, which is not installed: "
            f"pip install 'spatialflow[{extra}]'"
        ) from e


def add_executor_arguments(parser: argparse.ArgumentParser, executor: str | None) -> None:
    """Add ``--executor`` and ``--scheduler``; a command has ``--workers`` itself.

    Args:
        parser: of the command.
        executor: the default.
    """
    names = ", ".join(EXECUTORS)
    parser.add_argument("--executor", default=executor, help=f"{names} (default: %(default)s)")
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="dask: of your cluster's scheduler, such as tcp://host:8786; ray: of its head",
    )


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
