"""A trained model on toy scenes: equal bytes by two processes, read by the other commands."""

import json
import zipfile

import pytest
from predict_runs import Inline, content_of

from spatialflow.cli import run_command
from spatialflow.config import config_dir
from spatialflow.data.coco_panoptic import read_panoptic_json
from spatialflow.data.mapper import read_image
from spatialflow.data.targets import read_panoptic_png
from spatialflow.evaluation.panoptic_quality import PanopticCounts, match_segments
from spatialflow.inference.predictor import Predictor
from spatialflow.model_zoo import get_config
from spatialflow.tools.executors import EXECUTORS

CONFIG = "toy/spatialflow_toy_lite0.yaml"


@pytest.fixture(scope="module")
def toy(toy_datasets, tmp_path_factory):
    """The training scenes, and what one process makes of them: ``one``."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXECUTORS, "inline", Inline)
        assert predict(toy_datasets, folder / "one", "--executor", "inline") == 0
    return folder


def predict(datasets, output, *more):
    words = ["--input", datasets / "toy/train", "--output", output, "--shard-size", 3]
    words += ["--config-file", config_dir() / CONFIG]
    words += ["--json", datasets / "toy/panoptic_train.json", *more]
    return run_command("predict", list(map(str, words)))


def test_two_processes_give_the_bytes_of_one(toy, toy_datasets):
    assert predict(toy_datasets, toy / "two", "--workers", "2") == 0
    assert content_of(toy / "two") == content_of(toy / "one")


def test_score_is_that_of_the_predictor(toy, toy_datasets, tmp_path):
    content = read_panoptic_json(str(toy_datasets / "toy/panoptic_train.json"))
    counts = PanopticCounts(content["categories"])
    predictor = Predictor(get_config(CONFIG, trained=True))
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in content["annotations"]:
        image = read_image(str(toy_datasets / "toy/train" / names[annotation["image_id"]]), "BGR")
        output = predictor.panoptic(image)
        truth = read_panoptic_png(
            str(toy_datasets / "toy/panoptic_train" / annotation["file_name"])
        )
        segments = predictor.segments(output)
        ids = output["panoptic_seg"][0].numpy()
        counts.add(match_segments(ids, segments, truth, annotation["segments_info"]))
    expected = counts.metrics()
    assert expected["PQ"] > 50
    found = {}
    for executor in ("", "processes", "dask"):
        out = tmp_path / f"{executor}.json"
        words = [str(toy / "one"), "--json-out", str(out), "--workers", "2"]
        run_command("score", words + ["--executor", executor] * bool(executor))
        ((_, results),) = json.loads(out.read_text()).items()
        found[executor] = results["panoptic_seg"]
    assert found[""] == found["processes"] == found["dask"]
    assert found[""] == {k: pytest.approx(v, abs=1e-12) for k, v in expected.items()}


def test_report_and_submit_read_it(toy, tmp_path):
    run_command("report", [str(toy / "one"), "--output", str(tmp_path / "report.html")])
    assert (tmp_path / "report.html").stat().st_size > 10_000
    words = ["coco", str(toy / "one"), "--algorithm", "mine", "--output-dir", str(tmp_path)]
    run_command("submit", words)
    (path,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith(".png")]
    assert len(names) == 12
