"""Ray: plain tasks, without actors and without Ray Data, whose pools have hung."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray

from spatialflow.errors import UserError

from . import Settings


class RayExecutor:
    """See :class:`spatialflow.tools.executors.Executor`."""

    def __init__(self, settings: Settings) -> None:
        self._workers = settings.workers
        # Here too many CPUs for the tasks rather than too few: Ray needs some of its own.
        cpus = {} if settings.scheduler else {"num_cpus": max(2, settings.workers)}
        try:
            ray.init(settings.scheduler, include_dashboard=False, log_to_driver=False, **cpus)
        except (ConnectionError, ValueError) as e:
            raise UserError(f"Ray at {settings.scheduler} does not answer: {e}") from e
        # Whoever drives tries again, and counts how often.
        self._call = ray.remote(num_cpus=0.5, max_retries=0)(_call)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        return self._call.remote(function, *args).future()

    def slots(self) -> int:
        return self._workers

    def close(self) -> None:
        ray.shutdown()


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)
