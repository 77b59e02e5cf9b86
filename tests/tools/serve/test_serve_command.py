"""``spatialflow serve`` as a process, with the toy model that comes with the project."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra [serve] is not installed")

from panopticapi.utils import rgb2id  # noqa: E402
from served import Client, until  # noqa: E402

from spatialflow import Predictor, model_zoo  # noqa: E402
from spatialflow.cli import run_command  # noqa: E402
from spatialflow.config import config_dir  # noqa: E402
from spatialflow.tools.toy import make_scene  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
TOY = "toy/spatialflow_toy_lite0.yaml"

RUNTIME = '''
"""Stands in for the runtime of exported files."""
import numpy as np

class _Metadata:
    stop = "panoptic"
    things = [{"id": 3, "name": "disk", "color": [200, 60, 50], "isthing": True}]
    stuff = [{"id": -1, "name": "things", "color": [0, 0, 0], "isthing": True},
             {"id": 11, "name": "grass", "color": [70, 130, 70], "isthing": False}]

class PanopticModel:
    metadata = _Metadata()
    def __init__(self, path):
        open(path).close()
    def __call__(self, image):
        ids = np.where(image[:, :, 0] > 127, 1, 2).astype(np.int32)  # red: RGB comes first
        segments = [{"id": 1, "isthing": True, "category_id": 0, "score": 0.5},
                    {"id": 2, "isthing": False, "category_id": 1}]
        return {"panoptic_seg": (ids, [s for s in segments if (ids == s["id"]).any()])}
'''
NO_TORCH = """
import sys
for name in ("torch", "torchvision", "detectron2"):
    sys.modules[name] = None
from spatialflow.cli import main
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def process(*arguments, code=None, path=()):
    """A client of the server that a command starts, and the process."""
    start = ["-m", "spatialflow"] if code is None else ["-c", code]
    command = [sys.executable, "-W", "ignore", *start, "serve", "--port", "0", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *map(str, path)])}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    lines = []
    try:
        for line in server.stderr:
            lines.append(line)
            if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
                break
        else:
            pytest.fail("".join(lines))
        yield Client(int(found[1])), server
    finally:
        server.kill()
        server.communicate()


def scene(number):
    return np.ascontiguousarray(make_scene(0, "val", number).image[:, :, ::-1])


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def test_answers_are_the_predictors_and_sigterm_loses_none():
    predictor = Predictor(model_zoo.get_config(TOY, trained=True))
    with process("--config-file", config_dir() / TOY, "--queue", 6) as (client, server):
        assert client.get("/readyz").status == 200
        image = scene(0)
        expected = predictor.panoptic(image)
        answer = json.loads(client.predict(png(image)).body)
        segments = predictor.segments(expected)
        assert len(segments) > 2
        extra = ("color", "segmentation")
        found = [{k: v for k, v in s.items() if k not in extra} for s in answer["segments"]]
        assert found == segments
        with ThreadPoolExecutor(6) as pool:
            replies = [pool.submit(client.predict, png(scene(i)), "ids") for i in range(6)]
            until(lambda: client.counter("spatialflow_accepted_requests") >= 3)
            server.send_signal(signal.SIGTERM)
            replies = [r.exception() or r.result() for r in replies]
        answered = [r for r in replies if not isinstance(r, Exception)]
        assert len(answered) >= 3 and {r.status for r in answered} == {200}
        for i, reply in enumerate(replies):
            if reply in answered:
                decoded = cv2.imdecode(np.frombuffer(reply.body, np.uint8), cv2.IMREAD_COLOR)
                ids = predictor.panoptic(scene(i))["panoptic_seg"][0].numpy()
                np.testing.assert_array_equal(rgb2id(decoded[:, :, ::-1]), ids)
        assert server.wait(30) in (0, -signal.SIGTERM)


def test_an_exported_file_is_served_without_torch(tmp_path):
    (tmp_path / "spatialflow_runtime.py").write_text(RUNTIME)
    (tmp_path / "model.onnx").touch()
    model = ["--model", tmp_path / "model.onnx"]
    with process(*model, code=NO_TORCH, path=[tmp_path]) as (client, _):
        image = np.zeros((20, 30, 3), np.uint8)
        image[:, :10, 2] = 255
        answer = json.loads(client.predict(png(image)).body)
        disk, grass = answer["segments"]
        assert (disk["category"], disk["category_id"], disk["area"]) == ("disk", 3, 200)
        assert (grass["category"], grass["category_id"], grass["area"]) == ("grass", 11, 400)
        assert json.loads(client.get("/model").body)["name"] == "model.onnx"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "m.onnx", "--weights", "w.pth"], "--model is served alone"),
        (["--model", "m.pth"], "ends in .onnx or .xml"),
        (["--weights", "w.pth"], "needs the --config-file"),
        (["--token-file", "empty.txt"], "one line of ASCII"),
        (["--token-file", "absent.txt"], "absent.txt"),
    ],
)
def test_mistakes_are_one_line(here, capsys, monkeypatch, arguments, message):
    (here / "empty.txt").touch()
    with pytest.raises(SystemExit) as stop:
        run_command("serve", arguments)
    assert message in f"{stop.value.code}{capsys.readouterr().err}"


def test_a_runtime_that_is_not_installed_is_named(here, monkeypatch):
    (here / "model.onnx").touch()
    monkeypatch.setitem(sys.modules, "spatialflow_runtime", None)
    with pytest.raises(SystemExit, match="error: .*spatialflow_runtime.*--config-file"):
        run_command("serve", ["--model", "model.onnx"])


def test_the_extra_is_named_when_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit, match=r"error: .*needs uvicorn.*spatialflow\[serve\]"):
        run_command("serve", [])


def test_models_without_a_panoptic_map_are_refused():
    combine = ["MODEL.PANOPTIC_FPN.COMBINE.ENABLED", "False"]
    config = ["--config-file", str(config_dir() / TOY)]
    with pytest.raises(SystemExit, match="error: .*makes no panoptic maps.*COMBINE"):
        run_command("serve", [*config, "--opts", *combine])
