"""VPQ and identity switches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialflow.evaluation.panoptic_quality import PanopticCounts, match_segments
from spatialflow.evaluation.video import VideoPanopticQuality

CATEGORIES = [
    {"id": 1, "name": "box", "isthing": 1},
    {"id": 2, "name": "grass", "isthing": 0},
]
GRASS = {"id": 1, "category_id": 2}


def frame(*boxes):
    """A map of grass with boxes of 10 by 10 pixels: (column, id)."""
    ids = np.ones((20, 60), np.int32)
    for left, id_ in boxes:
        ids[5:15, left : left + 10] = id_
    return ids, [GRASS, *({"id": i, "category_id": 1} for _, i in boxes)]


def quality(pairs, windows=(1, 2, 4)):
    result = VideoPanopticQuality(CATEGORIES, windows)
    for predicted, truth in pairs:
        result.add(*predicted, *truth)
    return result.metrics()


def test_the_truth_against_itself_is_100():
    frames = [frame((t, 5), (40 - t, 6)) for t in range(8)]
    metrics = quality(zip(frames, frames, strict=True))
    assert metrics.pop("switches") == 0
    assert set(metrics.values()) == {100.0}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 2**31))
def test_one_frame_is_pq(lefts, seed):
    rng = np.random.default_rng(seed)
    pairs = [(frame((int(rng.integers(0, 50)), 9)), frame((left, 5))) for left in lefts]
    counts = PanopticCounts(CATEGORIES)
    for predicted, truth in pairs:
        counts.add(match_segments(*predicted, *truth))
    assert quality(pairs, windows=(1,))["VPQ-1"] == pytest.approx(counts.metrics()["PQ"])


def test_a_switched_identity_costs_longer_windows():
    truth = [frame((10, 5)) for _ in range(6)]
    predicted = [frame((10, 7 if t < 3 else 8)) for t in range(6)]
    metrics = quality(zip(predicted, truth, strict=True))
    assert metrics["VPQ-1"] == 100 and metrics["switches"] == 1
    assert metrics["VPQ-1"] > metrics["VPQ-2"] > metrics["VPQ-4"]
    assert metrics["VPQ_th"] < metrics["VPQ_st"] == 100
    # Windows of 2: in four of five one tube fits; across the switch both halves have IoU 0.5.
    iou_sum, tp, fp, fn = 4, 4, 2, 1
    box = iou_sum / (tp + 0.5 * fp + 0.5 * fn)
    assert metrics["VPQ-2"] == pytest.approx(100 * (box + 1) / 2)


def test_exchanged_identities_are_two_switches():
    truth = [frame((10, 5), (40, 6)) for _ in range(4)]
    predicted = [frame((10, 7), (40, 8)), frame((10, 8), (40, 7))]
    assert (
        quality(zip([predicted[0]] * 2 + [predicted[1]] * 2, truth, strict=True))["switches"] == 2
    )


def test_an_object_that_was_not_found_for_a_while_keeps_its_identity():
    truth = [frame((10, 5)) for _ in range(3)]
    same = [frame((10, 7)), frame(), frame((10, 7))]
    other = [frame((10, 7)), frame(), frame((10, 8))]
    assert quality(zip(same, truth, strict=True))["switches"] == 0
    assert quality(zip(other, truth, strict=True))["switches"] == 1


def test_no_window_goes_across_videos():
    result = VideoPanopticQuality(CATEGORIES, (1, 2))
    for id_ in (5, 6):
        result.start_video()
        for _ in range(2):
            result.add(*frame((10, 9)), *frame((10, id_)))
    metrics = result.metrics()
    assert metrics["VPQ"] == 100 and metrics["switches"] == 0
    assert result.counts[2].table[0, 1] == 2  # true positives


def test_windows_longer_than_the_video_are_left_out():
    metrics = quality([(frame((10, 5)), frame((10, 5)))], windows=(1, 2))
    assert metrics["VPQ"] == metrics["VPQ-1"] == 100 and "VPQ-2" not in metrics
    assert np.isnan(quality([])["VPQ"])


def test_the_caller_s_map_may_be_overwritten():
    result = VideoPanopticQuality(CATEGORIES, (2,))
    ids, segments = frame((10, 5))
    for _ in range(3):
        result.add(ids, segments, ids, segments)
        ids[:] = frame((10, 5))[0]
    assert result.metrics()["VPQ"] == 100
