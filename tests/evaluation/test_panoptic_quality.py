"""Panoptic quality: hand-made maps, and equality with panopticapi on random and recorded ones."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from panoptic_scenes import random_image
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image
from recordings import OFFICIAL

from spatialflow.evaluation.panoptic_quality import PanopticCounts, match_segments, overlaps

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = [
    {"id": 0, "name": "grass", "isthing": 0},
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 4, "name": "dog", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
]


def seg(id, category_id, iscrowd=0, **more):
    return {"id": id, "category_id": category_id, "iscrowd": iscrowd, **more}


def grid(*rows):
    return np.array([[int(c) for c in row] for row in rows])


def results_of(*images, categories=CATEGORIES):
    counts = PanopticCounts(categories)
    for image in images:
        counts.add(match_segments(*image))
    return counts.results()


def counts_of(*images):
    return {i: (r["tp"], r["fp"], r["fn"]) for i, r in results_of(*images)["per_class"].items()}


GT_MAP = grid("1122", "1122", "3333", "3333")
GT = [seg(1, 3), seg(2, 9), seg(3, 0)]


def test_perfect_prediction_is_1_whatever_the_ids():
    pred_map = np.array([0, 700, 5, 256**3 - 1])[GT_MAP]
    pred = [seg(256**3 - 1, 0), seg(5, 9), seg(700, 3)]
    results = results_of((pred_map, pred, GT_MAP, GT))
    assert results["All"] == {"pq": 1, "sq": 1, "rq": 1, "n": 3}
    assert results["Things"] == {"pq": 1, "sq": 1, "rq": 1, "n": 1}
    assert results["Stuff"] == {"pq": 1, "sq": 1, "rq": 1, "n": 2}
    assert results["per_class"][4] == {"pq": 0, "sq": 0, "rq": 0, "tp": 0, "fp": 0, "fn": 0}


def test_known_quality_of_4x4_maps():
    # cat: 3 of 4 pixels found (IoU 3/4); sky: 4 of 4, one too many (4/5); grass split 5 + 3 of 8:
    # IoU 5/8 and a false positive; a dog that does not exist is the last one.
    pred_map = grid("1122", "1222", "3333", "3444")
    pred = [seg(1, 3), seg(2, 9), seg(3, 0), seg(4, 4)]
    results = results_of((pred_map, pred, GT_MAP, GT))
    per_class = results["per_class"]
    assert [per_class[i]["pq"] for i in (0, 3, 4, 9)] == pytest.approx([5 / 8, 3 / 4, 0, 4 / 5])
    assert results["Things"]["pq"] == pytest.approx((3 / 4 + 0) / 2)
    assert results["Things"]["rq"] == pytest.approx(1 / 2)
    assert results["Stuff"]["pq"] == pytest.approx((5 / 8 + 4 / 5) / 2)
    assert results["All"]["sq"] == pytest.approx((5 / 8 + 3 / 4 + 0 + 4 / 5) / 4)
    assert results["All"]["n"] == 4


def test_iou_of_exactly_half_does_not_match():
    gt_map, pred_map = grid("1110", "0000"), grid("0111", "0000")
    gt_map[gt_map == 0] = 2
    pred_map[pred_map == 0] = 2
    pair = [seg(1, 3), seg(2, 9)]
    assert counts_of((pred_map, pair, gt_map, pair))[3] == (0, 1, 1)  # 2 shared of 4


def test_another_category_does_not_match():
    assert counts_of((GT_MAP, [seg(1, 4), *GT[1:]], GT_MAP, GT)) == {
        0: (1, 0, 0),
        3: (0, 0, 1),
        4: (0, 1, 0),
        9: (1, 0, 0),
    }


def test_void_is_left_out_of_the_union():
    gt_map = grid("1100", "1100", "0000", "0000")
    pred_map = np.ones((4, 4), dtype=np.int32)
    results = results_of((pred_map, [seg(1, 3)], gt_map, [seg(1, 3)]))
    assert results["per_class"][3]["pq"] == 1


@pytest.mark.parametrize("void_pixels, false_positives", [(8, 1), (9, 0)])
def test_false_positive_is_forgiven_when_more_than_half_is_void(void_pixels, false_positives):
    gt_map = np.where(np.arange(16).reshape(4, 4) < void_pixels, 0, 1)
    image = (np.ones((4, 4), dtype=int), [seg(1, 4)], gt_map, [seg(1, 0)])
    assert counts_of(image)[4] == (0, false_positives, 0)


@pytest.mark.parametrize("crowd_category, false_positives", [(3, 0), (4, 1)])
def test_crowd_forgives_its_own_category_only_and_is_never_missed(crowd_category, false_positives):
    gt_map, gt = grid("1111", "1111", "1122", "2222"), [seg(1, crowd_category, 1), seg(2, 9)]
    pred_map, pred = grid("1111", "1111", "1111", "1122"), [seg(1, 3), seg(2, 9)]
    counts = counts_of((pred_map, pred, gt_map, gt))
    assert counts[3] == (0, false_positives, 0)
    assert counts[4] == (0, 0, 0)
    assert counts[9] == (0, 1, 1)


def test_crowd_is_no_true_positive():
    gt = [seg(1, 3, 1), *GT[1:]]
    assert counts_of((GT_MAP, GT, GT_MAP, gt))[3] == (0, 0, 0)


def test_counts_of_parts_add_up():
    rng = np.random.default_rng(0)
    images = [random_image(rng) for _ in range(6)]
    whole, first, second = (PanopticCounts(CATEGORIES) for _ in range(3))
    for i, image in enumerate(images):
        whole.add(match_segments(*image))
        (first if i % 2 else second).add(match_segments(*image))
    first += second
    np.testing.assert_allclose(first.table, whole.table, atol=1e-12)
    assert (whole.table.sum(axis=0) > 3).all()


def test_counts_over_other_categories_do_not_add():
    with pytest.raises(ValueError, match="different categories"):
        counts = PanopticCounts(CATEGORIES)
        counts += PanopticCounts(CATEGORIES[1:])


def test_nothing_at_all_is_nan_and_not_an_error():
    void = np.zeros((4, 4), dtype=int)
    for images in ([], [(void, [], void, [])]):
        results = results_of(*images)
        for group in ("All", "Things", "Stuff"):
            assert results[group]["n"] == 0
            assert math.isnan(results[group]["pq"] + results[group]["sq"] + results[group]["rq"])


def test_no_prediction_and_no_ground_truth_segment():
    void = np.zeros((4, 4), dtype=int)
    assert results_of((void, [], GT_MAP, GT))["All"] == {"pq": 0, "sq": 0, "rq": 0, "n": 3}
    # All on void: forgiven, so that nothing occurs.
    assert results_of((GT_MAP, GT, void, []))["All"]["n"] == 0


@pytest.mark.parametrize(
    "pred_map, pred, gt, message",
    [
        (GT_MAP[:3], GT, GT, "prediction is 4x3, the ground truth 4x4"),
        (GT_MAP, GT[:2], GT, r"map of the prediction has ids .* lacks: \[3\]"),
        (GT_MAP, GT, GT[1:], r"map of the ground truth has ids .* lacks: \[1\]"),
        (GT_MAP, [*GT, seg(8, 3)], GT, r"segments of the prediction have no pixel .*: \[8\]"),
        (GT_MAP, GT, [*GT, seg(8, 3)], r"segments of the ground truth have no pixel .*: \[8\]"),
        (GT_MAP, [*GT, seg(1, 3)], GT, r"prediction are 0 or listed twice: \[1\]"),
        (GT_MAP, [*GT, seg(0, 3)], GT, r"prediction are 0 or listed twice: \[0\]"),
        (GT_MAP, [seg(1, 77), *GT[1:]], GT, r"prediction has category ids .* lacks: \[77\]"),
        (GT_MAP, GT, [seg(1, 77), *GT[1:]], r"ground truth has category ids .* lacks: \[77\]"),
    ],
)
def test_map_and_list_that_do_not_fit(pred_map, pred, gt, message):
    with pytest.raises(ValueError, match=message):
        results_of((pred_map, pred, GT_MAP, gt))


def test_overlaps_counts_void_and_pairs():
    shared = overlaps(grid("0011", "2211"), grid("0055", "5555"), [2, 1], [5])
    assert shared.tolist() == [[2, 0], [0, 2], [0, 4]]


def _panopticapi(images, categories, folder):
    """panopticapi's own averages over images that are written to a folder for it."""
    pairs = []
    for i, (pred_map, pred, gt_map, gt) in enumerate(images):
        entry = {"image_id": i, "file_name": f"{i}.png"}
        for side, id_map in (("pred", pred_map), ("gt", gt_map)):
            (folder / side).mkdir(exist_ok=True)
            Image.fromarray(id2rgb(id_map.astype(np.int64))).save(folder / side / f"{i}.png")
        gt = [{**s, "area": int((gt_map == s["id"]).sum())} for s in gt]
        pairs.append((entry | {"segments_info": gt}, entry | {"segments_info": pred}))
    by_id = {c["id"]: c for c in categories}
    stat = pq_compute_single_core(0, pairs, folder / "gt", folder / "pred", by_id)
    results = {}
    for name, isthing in (("All", None), ("Things", True), ("Stuff", False)):
        try:
            results[name], per_class = stat.pq_average(by_id, isthing)
        except ZeroDivisionError:
            results[name] = {"n": 0}
        if isthing is None and results[name]["n"]:
            results["per_class"] = per_class
    return results


def _assert_same(ours, theirs):
    for name in ("All", "Things", "Stuff"):
        assert ours[name]["n"] == theirs[name]["n"]
        for key in theirs[name]:
            assert ours[name][key] == pytest.approx(theirs[name][key], abs=1e-9), (name, key)
    for category_id, quality in theirs.get("per_class", {}).items():
        for key, value in quality.items():
            assert ours["per_class"][category_id][key] == pytest.approx(value, abs=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4), noise=st.sampled_from([0, 0.05, 0.5]))
def test_equals_panopticapi_on_random_maps(tmp_path_factory, seed, n, noise):
    rng = np.random.default_rng(seed)
    images = [random_image(rng, noise=noise) for _ in range(n)]
    theirs = _panopticapi(images, CATEGORIES, tmp_path_factory.mktemp("pq"))
    _assert_same(results_of(*images), theirs)


def test_equals_panopticapi_on_the_recorded_maps(tmp_path):
    recorded = json.loads((OFFICIAL / "manifest_misc.json").read_text())["misc"]["pq"]
    with np.load(OFFICIAL / "misc.npz") as arrays:
        images = [
            (arrays[f"pq/pred{i}"], recorded["pred"][i], arrays[f"pq/gt{i}"], recorded["gt"][i])
            for i in range(recorded["n_images"])
        ]
    ours = results_of(*images, categories=recorded["categories"])
    _assert_same(ours, recorded["expected"])
    _assert_same(ours, _panopticapi(images, recorded["categories"], tmp_path))
    for category_id, counts in recorded["expected"]["counts"].items():
        row = ours["per_class"][int(category_id)]
        assert {k: row[k] for k in ("tp", "fp", "fn")} == {k: counts[k] for k in ("tp", "fp", "fn")}
        assert row["sq"] * row["tp"] == pytest.approx(counts["iou"], abs=1e-9)
