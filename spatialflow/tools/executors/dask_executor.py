"""Dask distributed: the user's cluster, by the address of its scheduler, or one on this machine.

dask-jobqueue (SLURM), dask-kubernetes, ``dask ssh`` or the two commands ``dask scheduler`` and
``dask worker`` start clusters; workers need this package and the files under the same paths.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from distributed import Client, LocalCluster

from spatialflow.errors import UserError

from . import Settings


class DaskExecutor:
    """See :class:`spatialflow.tools.executors.Executor`."""

    def __init__(self, settings: Settings) -> None:
        self._cluster = None
        if settings.scheduler is None:
            self._cluster = LocalCluster(
                n_workers=settings.workers, threads_per_worker=1, dashboard_address=None
            )
        try:
            self._client = Client(self._cluster or settings.scheduler, set_as_default=False)
        except OSError as e:
            raise UserError(
                f"No Dask scheduler answers at {settings.scheduler}: {e}. `dask scheduler` starts "
                "one and prints its address."
            ) from e
        self._futures = self._client.get_executor(pure=False)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        return self._futures.submit(function, *args)

    def slots(self) -> int:
        # Workers may come and go; one task a process, and one that waits for the next free one.
        try:
            return len(self._client.nthreads()) + 1
        except OSError as e:
            raise UserError(
                f"The Dask scheduler is gone: {e}. Start it, and run the same command again."
            ) from e

    def close(self) -> None:
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()
