"""Videos in, videos and JSON lines out."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from spatialflow import Predictor, model_zoo
from spatialflow.cli import run_command
from spatialflow.config import config_dir, load_config
from spatialflow.data import Categories
from spatialflow.data.segments import segments_as_json
from spatialflow.errors import UserError
from spatialflow.evaluation.video import VideoPanopticQuality
from spatialflow.inference.video import predict_frame
from spatialflow.tools import video
from spatialflow.tools.toy_video import generate_video, video_frames
from spatialflow.tools.trained_config import set_confidence
from spatialflow.tools.video_files import VideoSink, VideoSource
from spatialflow.tracking import FramePrediction, PanopticTracker

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "RESULTS.md"
TOY = str(config_dir() / "toy" / "spatialflow_toy_lite0.yaml")
CATEGORIES = Categories.from_json(
    [{"id": 4, "name": "box", "isthing": 1}, {"id": 9, "name": "grass", "isthing": 0}]
)


@pytest.fixture(scope="module")
def toy_video(tmp_path_factory):
    """The folder ``toy`` with a video of six frames."""
    root = tmp_path_factory.mktemp("video")
    generate_video(str(root), 6)
    return root / "toy"


def box_model(image):
    """A model by eye: what is bright is a box."""
    ids = np.where(image.max(axis=2) > 127, 2, 1).astype(np.int32)
    segments = [
        {"id": 1, "isthing": False, "category_id": 1},
        {"id": 2, "isthing": True, "category_id": 0, "score": 0.9},
    ]
    return FramePrediction(ids, [s for s in segments if (ids == s["id"]).any()])


def box_frames(count, size=(48, 64)):
    for t in range(count):
        frame = np.full((*size, 3), 40, np.uint8)
        frame[20:36, 4 + 2 * t : 20 + 2 * t] = 230
        yield frame


def write_video(path, frames):
    sink = VideoSink(path, 12)
    for frame in frames:
        sink.write(frame)
    sink.close()
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("ending", [".mp4", ".avi", ".mkv"])
def test_what_is_written_is_read_again(tmp_path, ending):
    frames = list(box_frames(5))
    source = VideoSource(write_video(tmp_path / f"v{ending}", frames))
    assert source.length == 5 and source.rate == pytest.approx(12)
    for read, written in zip(source, frames, strict=True):
        assert np.abs(read.astype(int) - written).mean() < 8
    source.close()


def test_frames_are_segmented_followed_and_scored(toy_video, tmp_path, capsys):
    output = tmp_path / "drawn.mp4"
    frames = ["--input", toy_video / "video", "--truth", toy_video / "panoptic_video.json"]
    arguments = [*frames, "--output", output, "--config-file", TOY]
    assert run_command("video", list(map(str, arguments))) == 0
    printed = capsys.readouterr().out
    vpq = dict(line.split() for line in printed.splitlines() if line.startswith("VPQ"))
    assert float(vpq["VPQ"]) > 70 and float(vpq["VPQ-1"]) > 70
    assert "identity switches: 0 in 6 frames" in printed
    lines = read_lines(output.with_suffix(".jsonl"))
    assert [line["frame"] for line in lines] == list(range(6))
    assert VideoSource(output).length == 6
    classes = {}
    for line in lines:
        for s in line["segments"]:
            assert classes.setdefault(s["id"], s["category"]) == s["category"]
            assert coco_mask.decode(s["segmentation"]).sum() == s["area"]
    tracked = set.intersection(*({s["id"] for s in line["segments"]} for line in lines))
    assert sum(classes[i] in ("disk", "box", "triangle", "ring") for i in tracked) >= 3


def test_vpq_of_the_first_shot_is_the_documented_one():
    documented = re.search(r"^\| 60 \| ([\d.]+) .* ([\d]+) \|$", RESULTS.read_text(), re.M)
    predictor = Predictor(model_zoo.get_config("toy/spatialflow_toy_lite0.yaml", trained=True))
    categories = predictor.categories
    tracker, quality = PanopticTracker(categories), VideoPanopticQuality(categories.as_json())
    for scene in video_frames(0, 60):
        frame = np.ascontiguousarray(scene.image[:, :, ::-1])
        ids, segments = tracker(frame, predict_frame(predictor, frame))
        described = segments_as_json(ids, segments, categories)
        quality.add(ids, described, scene.ids, list(scene.segments))
    metrics = quality.metrics()
    assert metrics["VPQ"] == pytest.approx(float(documented[1]), abs=0.3)
    assert metrics["switches"] == int(documented[2])


def test_demo_takes_a_video(toy_video, tmp_path):
    frames = (cv2.imread(str(toy_video / "video" / f"{n:05}.png")) for n in range(2))
    path = write_video(tmp_path / "toy.avi", frames)
    arguments = ["--video-input", path, "--output", tmp_path / "out", "--config-file", TOY]
    assert run_command("demo", [*map(str, arguments), "--confidence-threshold", "0.99"]) == 0
    assert VideoSource(tmp_path / "out" / "toy_panoptic.mp4").length == 2
    lines = read_lines(tmp_path / "out" / "toy_panoptic.jsonl")
    scores = [s["score"] for line in lines for s in line["segments"] if s["isthing"]]
    assert len(lines) == 2 and (not scores or min(scores) >= 0.29)


class Webcam:
    """Stands in for a webcam; Ctrl-C comes with the fourth frame."""

    def __init__(self, number):
        assert number == 1
        self.frames = box_frames(3)

    def isOpened(self):
        return True

    def get(self, _):
        return 0

    def read(self):
        for frame in self.frames:
            return True, frame
        raise KeyboardInterrupt

    def release(self):
        pass


def test_a_webcam_ends_cleanly_with_ctrl_c(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cv2, "VideoCapture", Webcam)
    monkeypatch.setattr(video, "Predictor", lambda cfg: type("P", (), {"categories": CATEGORIES}))
    monkeypatch.setattr(video, "predict_frame", lambda _, image: box_model(image))
    output = tmp_path / "drawn.avi"
    arguments = ["--webcam", "1", "--output", str(output), "--config-file", TOY]
    assert run_command("video", arguments) == video.INTERRUPTED
    assert "Stopped after 3 frames" in capsys.readouterr().out
    monkeypatch.undo()
    assert VideoSource(output).length == 3
    lines = read_lines(output.with_suffix(".jsonl"))
    assert [[s["id"] for s in line["segments"]] for line in lines] == [[2, 3]] * 3


def test_colours_stay_with_the_object(tmp_path):
    output = tmp_path / "drawn.avi"
    source = VideoSource(write_video(tmp_path / "in.avi", box_frames(6)))
    assert video.follow(source, box_model, CATEGORIES, output) == (6, False)
    centres = [frame[24, 12 + 2 * t].astype(int) for t, frame in enumerate(VideoSource(output))]
    assert max(np.abs(c - centres[0]).max() for c in centres) < 25
    assert np.abs(centres[0] - 230).max() > 25


@pytest.mark.parametrize("enabled", [True, False])
def test_confidence_threshold(enabled):
    cfg = load_config(TOY, ["MODEL.PANOPTIC_FPN.COMBINE.ENABLED", str(enabled)])
    before = cfg.clone()
    set_confidence(cfg, None)
    assert cfg == before
    set_confidence(cfg, 0.77)
    threshold = cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH
    assert (threshold == 0.77) == enabled
    assert (cfg.MODEL.RETINANET.SCORE_THRESH_TEST == 0.77) == (not enabled)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input", "absent.mp4", "--output", "o.mp4"], "absent.mp4 not found"),
        (["--input", "text.mp4", "--output", "o.mp4"], "text.mp4 cannot be opened as a video"),
        (["--input", "empty", "--output", "o.mp4"], "empty has no image"),
        (["--input", "text.mp4", "--output", "text.mp4"], "written over the input"),
        (["--webcam", "--truth", "t.json", "--output", "o.mp4"], "--truth is for --input"),
        (["--webcam", "--input", "text.mp4", "--output", "o.mp4"], "not allowed with"),
    ],
)
def test_mistakes_are_one_line(here, capsys, arguments, message):
    (here / "text.mp4").write_text("no video")
    (here / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        run_command("video", arguments)
    assert message in f"{stop.value.code}{capsys.readouterr().err}"


def test_formats_and_sizes_are_checked(tmp_path):
    with pytest.raises(UserError, match="ends in .mp4"):
        VideoSink(tmp_path / "drawn.gif", 25)
    sink = VideoSink(tmp_path / "drawn.avi", 25)
    sink.write(np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(UserError, match="another|size"):
        sink.write(np.zeros((64, 48, 3), np.uint8))
    sink.close()


def test_truth_must_have_all_frames(toy_video):
    truth = video.Truth(toy_video / "panoptic_video.json")
    with pytest.raises(UserError, match="more frames than --truth, 6"):
        truth.add(6, np.zeros((128, 160), np.int32), [])


def test_demo_refuses_json_for_videos(here, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command("demo", ["--webcam", "--output", "o", "--json"])
    assert stop.value.code == 2 and "--json is for --input" in capsys.readouterr().err
