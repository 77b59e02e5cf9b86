"""The requests that were accepted, and the one thread that runs the model on them."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from ..picture import MAX_PIXELS, decode_picture, open_picture
from ..predictors import PanopticPredictor
from .answers import OUTPUTS, Answer
from .metrics import Metrics


class Job:
    """A picture on its way through the model's thread.

    Args:
        data: content of the picture's file.
        output: a key of :data:`spatialflow.tools.serve.answers.OUTPUTS`.
    """

    def __init__(self, data: bytes, output: str) -> None:
        self._data: bytes | None = data
        self._output = output

    def cancel(self) -> None:
        """Leave out what has not begun, and free the memory."""
        self._data = None

    def run(self, predictor: PanopticPredictor, metrics: Metrics, max_pixels: int) -> Answer:
        """Decode, predict and encode.

        Raises:
            PictureError: the picture is damaged.
            CancelledError: it was cancelled.
        """
        image = decode_picture(open_picture(self._data_or_cancelled(), max_pixels))
        self._data_or_cancelled()
        begin = time.monotonic()
        output = predictor(image)
        metrics.model_seconds.observe(time.monotonic() - begin)
        self._data_or_cancelled()
        return OUTPUTS[self._output](image, output, predictor.categories)

    def _data_or_cancelled(self) -> bytes:
        if self._data is None:
            raise CancelledError
        return self._data


class ModelQueue:
    """Requests before the one thread of the model.

    Args:
        predictor: the model.
        metrics: counters to keep.
        size: requests that may wait besides the one at work; more are refused.
        deadline: seconds from the request to its answer.
        max_pixels: of a picture.
    """

    def __init__(
        self,
        predictor: PanopticPredictor,
        metrics: Metrics,
        size: int,
        deadline: float,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.predictor = predictor
        self.deadline = deadline
        self._metrics = metrics
        self._max_pixels = max_pixels
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._lock = threading.Lock()
        self._free = size + 1
        self._size = size + 1
        self._last_seconds = 1.0
        self.is_open = True

    def close(self) -> None:
        """Finish what was accepted, accept nothing more."""
        self.is_open = False
        self._thread.shutdown(wait=True)

    def take_place(self) -> None:
        """Take a place, which :meth:`answer` gives back.

        Raises:
            HTTPException: 503, all are taken.
        """
        with self._lock:
            if self._free and self.is_open:
                self._free -= 1
                self._metrics.accepted.inc()
                return
        seconds = math.ceil(min(self._last_seconds, self.deadline))
        raise HTTPException(
            503,
            f"{self._size} requests are waiting already; try again.",
            headers={"Retry-After": str(max(1, seconds))},
        )

    async def answer(
        self, request: Request, output: str, read: Callable[[Request], Awaitable[bytes]]
    ) -> Answer:
        """Read a request's picture and answer it.

        Args:
            request: its body was not read yet, and a place was taken for it.
            output: a key of :data:`spatialflow.tools.serve.answers.OUTPUTS`.
            read: reads the body.

        Raises:
            HTTPException: 408, the picture took too long; 504, the answer did.
            PictureError: the picture is not accepted.
            ClientDisconnect: the client left.
        """
        begin = time.monotonic()
        try:
            data = await asyncio.wait_for(read(request), self.deadline)
            open_picture(data, self._max_pixels)  # the header, before it waits
            job = Job(data, output)
            del data
            future = self._thread.submit(job.run, self.predictor, self._metrics, self._max_pixels)
        except BaseException as e:
            self._give_place()
            if isinstance(e, asyncio.TimeoutError):
                raise HTTPException(408, "The picture did not arrive in time.") from e
            raise
        # The place is free again once the thread is done with it, whoever still waits.
        future.add_done_callback(lambda _: self._give_place())
        answer = await self._wait(request, job, future, self.deadline - time.monotonic() + begin)
        self._last_seconds = time.monotonic() - begin
        return answer

    async def _wait(
        self, request: Request, job: Job, future: Future[Answer], seconds: float
    ) -> Answer:
        waiting = asyncio.wrap_future(future)
        left = asyncio.ensure_future(_client_leaves(request))
        try:
            first: set[asyncio.Future[Any]] = {waiting, left}
            timeout = max(0.0, seconds)
            await asyncio.wait(first, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if left.done():
                raise ClientDisconnect
            raise HTTPException(504, f"There was no answer within {self.deadline:g} seconds.")
        finally:
            if not waiting.done():
                self._metrics.cancelled.inc()
                job.cancel()
                waiting.cancel()  # and the future, if the thread has not begun with it
            left.cancel()

    def _give_place(self) -> None:
        with self._lock:
            self._free += 1
            self._metrics.accepted.dec()


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
