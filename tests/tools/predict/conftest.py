"""Runs with a model that counts its calls."""

import pytest
from PIL import Image
from predict_runs import Inline, Runs

from spatialflow.tools.executors import EXECUTORS
from spatialflow.tools.predict import shard

PICTURES = 18


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Pictures, and runs over them; what the model of a run does to this process is undone."""
    runs = Runs(tmp_path, PICTURES)
    monkeypatch.setenv("COUNTED_PREDICTOR", str(runs.faults))
    monkeypatch.setitem(EXECUTORS, "inline", Inline)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setattr(shard, "_loaded", {})
    return runs


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The files of a run that nothing happened to, on the pictures of ``runs``."""
    runs = Runs(tmp_path_factory.mktemp("undisturbed"), PICTURES)
    runs.run("out")
    assert runs.count() == dict.fromkeys(range(PICTURES), 1)
    return runs.content("out")
