"""The toy scenes in motion."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from spatialflow.cli import run_command
from spatialflow.data.targets import index_map, read_panoptic_png
from spatialflow.saved.predictions import PanopticFolder, read_truth_json
from spatialflow.tools.toy import HEIGHT, THINGS, WIDTH
from spatialflow.tools.toy_video import SHOT, video_frames

DIGEST = "c1bc96ce928108e76f71786f87b4386ce8241e356d631e4e5e9aec672eda4f9b"


@pytest.fixture(scope="module")
def frames():
    """Of each frame of two shots its image, ids and segments."""
    return [(s.image, s.ids, list(s.segments)) for s in video_frames(0, 2 * SHOT)]


def visible(frames, id_):
    return [int((ids == id_).sum()) for _, ids, _ in frames]


def things(frames):
    return sorted({s["id"] for _, _, segments in frames for s in segments if s["category_id"] < 10})


def test_bytes_are_the_pinned_ones(frames):
    digest = hashlib.sha256()
    for image, ids, _ in frames[::7]:
        digest.update(image.tobytes() + ids.astype("<i4").tobytes())
    assert digest.hexdigest() == DIGEST


def test_ids_and_segments_fit_and_keep_their_class(frames):
    classes = {}
    for image, ids, segments in frames:
        assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
        index_map(ids, segments, "frame")
        for s in segments:
            assert classes.setdefault(s["id"], s["category_id"]) == s["category_id"]


def test_a_cut_ends_all_objects_and_changes_the_picture(frames):
    first, second = frames[:SHOT], frames[SHOT:]
    assert len(things(first)) == 6 and not set(things(first)) & set(things(second))
    steps = [
        np.abs(a[0].astype(int) - b[0]).mean() for a, b in zip(frames, frames[1:], strict=False)
    ]
    assert np.argmax(steps) == SHOT - 1
    assert steps[SHOT - 1] > 2 * max(steps[: SHOT - 1])


def test_one_is_hidden_for_ten_frames_and_comes_back(frames):
    hidden = things(frames[:SHOT])[2]
    seen = [n > 0 for n in visible(frames[:SHOT], hidden)]
    first, last = seen.index(True), SHOT - seen[::-1].index(True)
    assert seen[first:last].count(False) >= 10


def test_shapes_enter_leave_and_cross(frames):
    shot = frames[:SHOT]
    back, front, _, _, entering, leaving = (visible(shot, id_) for id_ in things(shot))
    assert entering[0] == 0 < entering[-1]
    assert leaving[0] > 0 == leaving[-1]
    assert min(front) > 0 and 0 < min(back) < 0.8 * max(back)  # one goes before the other
    columns = [
        [np.nonzero(ids == id_)[1].mean() for id_ in things(shot)[:2]]
        for _, ids, _ in (shot[0], shot[-1])
    ]
    assert columns[0][0] > columns[0][1] and columns[1][0] < columns[1][1]


def test_command_writes_a_panoptic_dataset_in_the_order_of_the_video(tmp_path, frames):
    run_command("toy", ["--root", str(tmp_path), "--video", "3"])
    path = tmp_path / "toy" / "panoptic_video.json"
    content, categories = read_truth_json(str(path))
    assert {c.name for c in categories.things} == set(THINGS.values())
    folder = PanopticFolder(str(path))
    for annotation, image, (pixels, ids, _) in zip(
        content["annotations"], content["images"], frames, strict=False
    ):
        np.testing.assert_array_equal(read_panoptic_png(folder.png(annotation)), ids)
        written = np.asarray(Image.open(tmp_path / "toy" / "video" / image["file_name"]))
        np.testing.assert_array_equal(written, pixels)
    assert [i["file_name"] for i in json.loads(path.read_text())["images"]] == [
        f"{n:05}.png" for n in range(3)
    ]
