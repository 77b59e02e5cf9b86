"""Pictures, numbers and the page as a file; how it looks and works is test_browser.py's."""

import base64
import html
import json
import math
import os
import re
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
from saved_run import EVIL, SKY

from spatialflow.cli import run_command
from spatialflow.tools.report import build_content, read_saved
from spatialflow.tools.report.content import best_and_worst
from spatialflow.tools.report.outcomes import match_image
from spatialflow.tools.report.page import render_page
from spatialflow.tools.report.pictures import MAX_SIDE, draw_image, encode_runs

main = partial(run_command, "report")


@pytest.fixture
def saved(results):
    return read_saved(str(results))


@pytest.fixture
def content(saved):
    return build_content(saved, pictures=10)


def decode_runs(text, width):
    pairs = np.frombuffer(base64.b64decode(text), "<u2").reshape(-1, 2)
    return np.repeat(pairs[:, 0], pairs[:, 1]).reshape(-1, width)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 400)])
def test_runs_hold_the_map(shape):
    index = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint16) * 300
    assert (decode_runs(encode_runs(index), shape[1]) == index).all()


def test_runs_end_with_the_row():
    assert base64.b64decode(encode_runs(np.ones((2, 3), np.uint8))) == b"\1\0\3\0" * 2


def test_picture_is_reduced_and_keeps_its_segments(tmp_path, saved):
    image = saved.images[0]
    large = np.zeros((2000, 1000, 3), np.uint8)
    large[:1000, :, 0] = 7  # segment 7 in the upper half
    for name in ("photo.jpg", "map.png"):
        cv2.imwrite(str(tmp_path / name), large[..., ::-1])
    png, segments = str(tmp_path / "map.png"), [{"id": 7, "category_id": SKY}]
    image = replace(image, truth_png=png, png=png, truth_segments=segments, segments=segments)
    image = replace(image, file_name=str(tmp_path / "photo.jpg"))
    drawn = draw_image(image, match_image(image), saved.categories)
    assert (drawn["width"], drawn["height"]) == (MAX_SIDE // 2, MAX_SIDE)
    index = decode_runs(drawn["truth"]["runs"], MAX_SIDE // 2)
    assert (index[: MAX_SIDE // 2] == 1).all() and not index[MAX_SIDE // 2 :].any()
    sky = next(i for i, c in enumerate(saved.categories) if c.id == SKY)
    described = [(s["class"], s["color"]) for s in drawn["predicted"]["segments"]]
    assert described == [(sky, saved.categories[sky].color)]
    jpeg = base64.b64decode(drawn["photo"].removeprefix("data:image/jpeg;base64,"))
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (640, 320, 3)


def test_image_file_that_cannot_be_read(tmp_path, saved):
    image = replace(saved.images[0], file_name=str(tmp_path / "absent.jpg"))
    outcome = match_image(image)
    assert draw_image(image, outcome, saved.categories)["photo"] is None
    (tmp_path / "absent.jpg").write_text("no image")
    assert draw_image(image, outcome, saved.categories)["photo"] is None


@pytest.mark.parametrize(
    ("number", "best", "worst"),
    [(1, [3], [1]), (2, [3, 0], [1, 4]), (9, [3, 0], [1, 4, 5])],
)
def test_best_and_worst(number, best, worst):
    qualities = [0.7, 0.1, math.nan, 0.9, 0.2, 0.5]
    assert best_and_worst(qualities, number) == (best, worst)


def test_numbers(content, saved):
    recorded = saved.results["panoptic_seg"]
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for key in ("pq", "sq", "rq"):
            expected = recorded[key.upper() + suffix]
            assert 100 * content["groups"][group][key] == pytest.approx(expected, abs=1e-9)
    cat, dog, grass, sky = content["classes"]
    assert (cat["name"], cat["isthing"], cat["tp"], cat["fp"], cat["fn"]) == ("cat", True, 1, 0, 1)
    assert (dog["tp"], dog["fp"], dog["fn"], dog["pq"]) == (0, 2, 1, 0)
    assert (grass["name"], grass["tp"], sky["pq"]) == (EVIL, 2, 1)
    assert content["confusions"] == [
        [-1, 1, 1],
        [0, 0, 1],
        [0, 1, 1],
        [1, -1, 1],
        [2, 2, 2],
        [3, 3, 1],
    ]
    assert content["outcome_counts"] == {
        "Things": {"match": 1, "confused": 1, "missed": 1, "false_positive": 1},
        "Stuff": {"match": 3, "confused": 0, "missed": 0, "false_positive": 0},
    }
    assert content["tasks"] == {"Boxes": {"AP": 12.5, "APs": None}}
    assert content["histogram"] == [0] * 12 + [1] + [0] * 6 + [1]
    assert [i["name"] for i in content["images"]["best"]] == ["scene1.jpg"]
    assert [i["name"] for i in content["images"]["worst"]] == ["scene0.jpg"]
    assert content["notes"] == []


def test_notes(saved):
    results = {"panoptic_seg": {"PQ": 99.0}}
    partly = replace(saved, images=saved.images[:1], results=results)
    partial, changed = build_content(partly, pictures=0)["notes"]
    assert partial.startswith("Only 1 of the dataset's 2 images")
    assert changed.startswith("results.json has PQ 99.00, the saved predictions 64.54")
    (nothing,) = build_content(replace(saved, results={}), pictures=0)["notes"]
    assert nothing.startswith("There is no results.json")


def test_classes_that_do_not_occur_are_no_nan(saved):
    crowd_only = replace(saved.images[1], segments=[], truth_segments=[])
    blank = np.zeros((4, 4, 3), np.uint8)
    path = saved.images[1].png.replace("scene1", "blank")
    cv2.imwrite(path, blank)
    image = replace(crowd_only, png=path, truth_png=path)
    content = build_content(replace(saved, images=[image], results={}), pictures=3)
    os.unlink(path)
    assert content["groups"]["All"] == {"pq": None, "sq": None, "rq": None, "n": 0}
    assert content["images"] == {"best": [], "worst": []}


def test_page_is_one_safe_file(content):
    page = render_page({**content, "dataset": EVIL, "config": "{{style}} <!-- <script>"})
    assert re.findall(r"</?script[^>]*>", page) == [
        '<script type="application/json" id="data">',
        "</script>",
        "<script>",
        "</script>",
    ]
    assert f"<title>{html.escape(EVIL)}: panoptic segmentation</title>" in page
    assert not re.search(r'(?:src|href)="(?!#)|url\(|@import|https?:', page)
    assert "default-src 'none'" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert data["config"] == "{{style}} <!-- <script>"
    assert data["classes"][2]["name"] == EVIL


def test_command(results, tmp_path, capsys):
    main([str(results), "--output", str(tmp_path / "new" / "page.html"), "--workers", "1"])
    page = (tmp_path / "new" / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "scene0.jpg" in page
    assert "page.html: 0.1 MB" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["inference/*/panoptic_predictions.json", "inference/*/dataset.json", "results.json"]
)
def test_command__input_is_not_overwritten(own_results, name):
    (path,) = own_results.glob(name)
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="would be written over the input"):
        main([str(own_results), "--output", str(path), "--workers", "1"])
    assert path.read_bytes() == before


def test_command__pictures_are_bounded(results, capsys):
    with pytest.raises(SystemExit):
        main([str(results), "--images", "26"])
    assert "a whole number from 0 to 25, not 26" in capsys.readouterr().err


def test_command__one_message_without_traceback(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*TEST.SAVE_PREDICTIONS True"):
        main([str(tmp_path)])
