"""A server in a thread of the test's process, and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import struct
import threading
import time
import zlib
from typing import NamedTuple

import numpy as np

from spatialflow.data import Categories

CATEGORIES = Categories.from_json(
    [
        {"id": 3, "name": "disk", "isthing": 1, "color": [200, 60, 50]},
        {"id": 11, "name": "grass", "isthing": 0, "color": [70, 130, 70]},
    ]
)


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class BrightOrDark:
    """A model by eye: bright pixels are a disk, the others are grass.

    Attributes:
        calls: how often it was called.
        gate: while it is closed, calls wait.
    """

    name = "bright or dark"
    categories = CATEGORIES

    def __init__(self):
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, image):
        self.calls += 1
        assert self.gate.wait(30)
        ids = np.where(image.max(axis=2) > 127, 1, 2).astype(np.int32)
        segments = [
            {"id": 1, "isthing": True, "category_id": 0, "score": 0.9},
            {"id": 2, "isthing": False, "category_id": 1},
        ]
        return ids, [s for s in segments if (ids == s["id"]).any()]


class Client:
    """Requests to a server on this machine."""

    def __init__(self, port: int):
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"

    def request(self, method, path, body=None, headers=None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path, **headers) -> Reply:
        return self.request("GET", path, headers=headers)

    def predict(self, picture: bytes, output="json", **headers) -> Reply:
        return self.request("POST", f"/predict?output={output}", picture, headers)

    def counter(self, name: str) -> float:
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@contextlib.contextmanager
def serving(predictor, **settings):
    """A client of a server that ends with the block."""
    import uvicorn

    from spatialflow.tools.serve.app import Settings, build_app, server_config

    config = server_config(build_app(predictor, Settings(**settings)), "127.0.0.1", 0)
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield Client(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)


def until(condition, seconds=30):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def png_of_size(width, height):
    """A PNG that claims a size and has hardly any pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
