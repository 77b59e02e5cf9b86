"""The routes of the server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources
from mimetypes import guess_type

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..picture import MAX_BYTES, MAX_PIXELS, PictureError
from ..predictors import PanopticPredictor
from .answers import OUTPUTS, Answer
from .body import drain_body, read_body
from .guard import LOOPBACK, SecurityHeaders, check_sender
from .metrics import Metrics
from .requests import ModelQueue

CLIENT_LEFT = 499
"""Status of a request whose client left, for the counters; nobody sees it."""
_STATIC = ("serve/static", "web")


@dataclass(frozen=True)
class Settings:
    """How a server behaves.

    Attributes:
        queue_size: requests that may wait while one is worked on.
        deadline: seconds from a request to its answer.
        token: see :func:`spatialflow.tools.serve.guard.check_sender`.
        hosts: the same.
        max_bytes: of a picture's file.
        max_pixels: of a picture.
    """

    queue_size: int = 8
    deadline: float = 60.0
    token: str | None = None
    hosts: frozenset[str] | None = LOOPBACK
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS


def build_app(predictor: PanopticPredictor, settings: Settings = Settings()) -> Starlette:
    """The application for an ASGI server.

    Args:
        predictor: the model; one thread of the application calls it.
        settings: limits and access.
    """
    server = _Server(predictor, settings)
    routes = [
        Route("/", server.page),
        Route("/static/{name}", server.static),
        Route("/predict", server.predict, methods=["POST"]),
        Route("/model", server.model),
        Route("/metrics", server.metrics),
        Route("/healthz", server.healthz),
        Route("/readyz", server.readyz),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={HTTPException: _refusal, Exception: _failure},
        lifespan=server.lifespan,
    )


def server_config(app: Starlette, host: str, port: int) -> uvicorn.Config:
    """How uvicorn runs the application; when it ends, it waits for the open requests."""
    return uvicorn.Config(app, host, port, access_log=False, server_header=False)


class _Server:
    """The state that routes share."""

    def __init__(self, predictor: PanopticPredictor, settings: Settings) -> None:
        self._settings = settings
        self._counters = Metrics()
        self._queue = ModelQueue(
            predictor,
            self._counters,
            settings.queue_size,
            settings.deadline,
            settings.max_pixels,
        )
        self._files = {
            file.name: file.read_bytes()
            for folder in _STATIC
            for file in (resources.files("spatialflow.tools") / folder).iterdir()
        }

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """When the server ends, what was accepted is finished."""
        yield
        self._queue.close()

    async def page(self, request: Request) -> Response:
        """The page."""
        return Response(self._files["index.html"], media_type="text/html")

    async def static(self, request: Request) -> Response:
        """Scripts and styles of the page, by names that are known beforehand."""
        name = request.path_params["name"]
        if name not in self._files:
            raise HTTPException(404, "There is no such file.")
        return Response(self._files[name], media_type=guess_type(name)[0])

    async def model(self, request: Request) -> Response:
        """What is served: the name of the model and its classes."""
        self._check(request)
        predictor = self._queue.predictor
        content = {"name": predictor.name, "classes": predictor.categories.as_json()}
        return JSONResponse(content)

    async def metrics(self, request: Request) -> Response:
        """Counters as Prometheus reads them."""
        self._check(request)
        return PlainTextResponse(self._counters.text())

    async def healthz(self, request: Request) -> Response:
        """The process is there."""
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Requests are accepted."""
        if not self._queue.is_open:
            return PlainTextResponse("closing\n", 503)
        return PlainTextResponse("ready\n")

    async def predict(self, request: Request) -> Response:
        """A picture's bytes in, an answer out."""
        begin, status = time.monotonic(), 500
        try:
            answer = await self._predict(request)
            status = 200
            self._counters.seconds.observe(time.monotonic() - begin)
            return Response(answer.body, media_type=answer.media_type)
        except HTTPException as e:
            status = e.status_code
            raise
        except PictureError as e:
            status = e.status
            raise HTTPException(e.status, str(e)) from e
        except ClientDisconnect:
            status = CLIENT_LEFT
            return Response(status_code=CLIENT_LEFT)
        finally:
            self._counters.requests.labels(str(status)).inc()

    async def _predict(self, request: Request) -> Answer:
        limit = self._settings.max_bytes
        try:
            self._check(request)
            output = request.query_params.get("output", "json")
            if output not in OUTPUTS:
                raise HTTPException(400, f"output is one of {', '.join(OUTPUTS)}.")
            self._queue.take_place()
        except HTTPException:
            await drain_body(request, limit)
            raise
        return await self._queue.answer(request, output, lambda r: read_body(r, limit))

    def _check(self, request: Request) -> None:
        check_sender(request, self._settings.token, self._settings.hosts)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    """Of an error that nobody expected; its traceback is in the server's log."""
    return JSONResponse({"error": "The server failed; its log says why."}, 500)
