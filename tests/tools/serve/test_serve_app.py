"""The API under load and under attack, with a model that takes no time."""

import gc
import json
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

from served import BrightOrDark, png_of_size, serving, until  # noqa: E402

from spatialflow.tools.serve.answers import OUTPUTS  # noqa: E402

SIZE = 8


@pytest.fixture(scope="module")
def model():
    return BrightOrDark()


@pytest.fixture(scope="module")
def client(model):
    with serving(model, queue_size=SIZE) as client:
        yield client


def picture(seed=0, size=(30, 40)):
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def expected(model, data, output="json"):
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return OUTPUTS[output](image, model(image), model.categories).body


def memory():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_picture_is_answered(client, model, output):
    data = picture()
    reply = client.predict(data, output)
    assert reply.status == 200 and reply.body == expected(model, data, output)
    kind = "application/json" if output == "json" else "image/png"
    assert reply.headers["Content-Type"] == kind


def test_every_answer_has_the_headers_of_a_careful_server(client):
    for reply in (client.get("/"), client.get("/nowhere"), client.predict(b"")):
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "Access-Control-Allow-Origin" not in reply.headers
        assert "Server" not in reply.headers


def test_health_and_what_is_served(client):
    assert client.get("/healthz").status == client.get("/readyz").status == 200
    content = json.loads(client.get("/model").body)
    assert content["name"] == "bright or dark"
    assert [c["name"] for c in content["classes"]] == ["disk", "grass"]
    assert client.get("/predict").status == 405
    assert client.get("/static/..%2Fapp.py").status == 404


def test_metrics(client):
    before = client.counter('spatialflow_requests_total{status="200"}')
    client.predict(picture())
    client.predict(b"no picture")
    assert client.counter('spatialflow_requests_total{status="200"}') == before + 1
    assert client.counter('spatialflow_requests_total{status="415"}') >= 1
    assert client.counter("spatialflow_accepted_requests") == 0
    assert client.counter("process_resident_memory_bytes") > 10**6


@pytest.mark.parametrize(
    "data, statuses",
    [
        (png_of_size(50_000, 50_000), {413}),
        (picture(size=(300, 300))[:2000], {400}),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', {415}),
        (b"", {400}),
        (b"\0" * 21_000_000, {413}),
        (b"\0" * 21_000_000 * 4, {413}),
    ],
    ids=["huge", "truncated", "svg", "empty", "21 MB", "84 MB"],
)
def test_what_is_refused_costs_no_memory(client, model, data, statuses):
    client.predict(picture())
    calls = model.calls
    gc.collect()
    before = memory()
    for _ in range(3):
        try:
            reply = client.predict(data)
        except ConnectionError:  # the client was still sending when it was refused
            assert len(data) > 80_000_000
            continue
        assert reply.status in statuses
        assert json.loads(reply.body)["error"]
    assert memory() - before < 60 * 2**20
    assert model.calls == calls


def test_unknown_outputs_are_refused(client):
    reply = client.predict(picture(), output="svg")
    assert reply.status == 400 and b"json, ids, drawn" in reply.body


def test_a_flood_is_answered_or_refused(client, model):
    pictures = [picture(seed) for seed in range(50)]
    model.gate.clear()
    with ThreadPoolExecutor(50) as pool:
        replies = [pool.submit(client.predict, data) for data in pictures]
        until(lambda: sum(r.done() for r in replies) >= 50 - SIZE - 1)
        model.gate.set()
        replies = [r.result() for r in replies]
    assert Counter(r.status for r in replies) == {200: SIZE + 1, 503: 50 - SIZE - 1}
    for data, reply in zip(pictures, replies, strict=True):
        if reply.status == 200:
            assert reply.body == expected(model, data)
        else:
            assert 1 <= int(reply.headers["Retry-After"]) <= 60
    assert client.predict(pictures[0]).status == 200


def post(client, data):
    """A connection that has sent a picture and waits for the answer."""
    connection = socket.create_connection(("127.0.0.1", client.port))
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def test_a_client_that_leaves_cancels_its_work(client, model):
    cancelled = client.counter("spatialflow_cancelled_requests_total")
    calls = model.calls
    model.gate.clear()
    waiting = [post(client, picture(seed)) for seed in range(4)]
    until(lambda: client.counter("spatialflow_accepted_requests") == 4)
    until(lambda: model.calls == calls + 1)
    for connection in waiting:
        connection.close()
    until(lambda: client.counter("spatialflow_cancelled_requests_total") == cancelled + 4)
    model.gate.set()
    until(lambda: client.counter("spatialflow_accepted_requests") == 0)
    assert model.calls == calls + 1  # those that waited were never begun


def test_deadline(model):
    with serving(model, deadline=0.3) as client:
        model.gate.clear()
        try:
            assert client.predict(picture()).status == 504
            slow = socket.create_connection(("127.0.0.1", client.port))
            slow.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc"
            )
            assert b" 408 " in slow.recv(1000)
            slow.close()
        finally:
            model.gate.set()


def test_an_error_of_the_model_is_one_500(model, caplog):
    class Failing(BrightOrDark):
        def __call__(self, image):
            if image.shape[0] == 7:
                raise RuntimeError("secret /path")
            return super().__call__(image)

    with serving(Failing()) as client:
        reply = client.predict(picture(size=(7, 7)))
        assert reply.status == 500 and b"secret" not in reply.body
        assert client.predict(picture()).status == 200


def test_a_token_is_asked_for(model):
    with serving(model, token="sesame") as client:
        assert client.get("/").status == client.get("/readyz").status == 200
        for path in ("/model", "/metrics"):
            assert client.get(path).status == 401
        assert client.predict(picture()).status == 401
        for given in ("Bearer wrong", "Basic sesame", "sesame", b"Bearer s\xe9same", "Bearer "):
            assert client.predict(picture(), Authorization=given).status == 401
        assert client.predict(picture(), Authorization="Bearer sesame").status == 200


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}]
)
def test_pages_of_other_sites_are_refused(client, headers):
    assert client.predict(picture(), **headers).status == 403


def test_the_page_s_own_requests_are_answered(client):
    own = {"Host": f"localhost:{client.port}", "Origin": f"http://localhost:{client.port}"}
    assert client.predict(picture(), **own).status == 200


def test_a_thousand_requests_leave_memory_flat(client):
    data = picture(size=(128, 160))
    for _ in range(100):
        client.predict(data)
    gc.collect()
    before = memory()
    with ThreadPoolExecutor(4) as pool:
        statuses = Counter(r.status for r in pool.map(client.predict, [data] * 1000))
    gc.collect()
    assert statuses == {200: 1000}
    assert memory() - before < 8 * 2**20


def test_what_was_accepted_is_finished_when_the_server_ends(model):
    model.gate.clear()
    with ThreadPoolExecutor(5) as pool:
        with serving(model) as client:
            replies = [pool.submit(client.predict, picture(seed)) for seed in range(5)]
            until(lambda: client.counter("spatialflow_accepted_requests") == 5)
            threading.Timer(0.2, model.gate.set).start()
        assert [r.result().status for r in replies] == [200] * 5
    with pytest.raises(ConnectionError):
        client.get("/healthz")
