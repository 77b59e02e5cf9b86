"""Panoptic maps whose ids stay."""

import tracemalloc

import numpy as np

from spatialflow.data import Categories
from spatialflow.tracking import Candidate, FramePrediction, PanopticTracker

CATEGORIES = Categories.from_json(
    [
        {"id": 1, "name": "box", "isthing": 1},
        {"id": 11, "name": "grass", "isthing": 0},
        {"id": 12, "name": "sky", "isthing": 0},
    ]
)
SIZE = (40, 80)


def frame(*lefts, ids=(5, 9), shade=90, score=0.9):
    """A frame with boxes on grass under the sky; ids as a model gives them, by frame."""
    image = np.full((*SIZE, 3), shade, np.uint8)
    panoptic = np.full(SIZE, ids[0], np.int32)
    panoptic[:10] = ids[1]
    segments = [
        {"id": ids[0], "isthing": False, "category_id": 1},
        {"id": ids[1], "isthing": False, "category_id": 2},
    ]
    for i, left in enumerate(lefts):
        panoptic[15:25, left : left + 10] = 20 + i
        segments.append({"id": 20 + i, "isthing": True, "category_id": 0, "score": score})
    return image, FramePrediction(panoptic, segments)


def test_ids_of_stuff_are_those_of_the_labels_and_ids_of_things_follow():
    tracker = PanopticTracker(CATEGORIES)
    ids, segments = tracker(*frame(5, 50))
    assert [s["id"] for s in segments] == [2, 3, 4, 5]
    assert [s.get("track_id") for s in segments] == [None, None, 4, 5]
    assert ids[0, 0] == 3 and ids[39, 0] == 2 and ids[20, 8] == 4 and ids[20, 55] == 5
    assert [s["area"] for s in segments] == [(ids == s["id"]).sum() for s in segments]
    ids, segments = tracker(*frame(53, 8, ids=(1, 2)))  # other ids, another order
    assert ids[20, 55] == 5 and ids[20, 12] == 4 and ids[0, 0] == 3
    before = frame(50, 5)[1]
    tracker(np.zeros((*SIZE, 3), np.uint8), before)
    assert before.segments[2]["id"] == 20 and before.ids[20, 55] == 20  # left as they were


def test_a_cut_ends_tracks_and_a_moving_camera_does_not():
    tracker = PanopticTracker(CATEGORIES)
    for shade in (90, 92, 90, 93):
        ids, _ = tracker(*frame(30, shade=shade))
    assert ids[20, 35] == 4
    ids, _ = tracker(*frame(30, shade=180))
    assert ids[20, 35] == 5
    moving = PanopticTracker(CATEGORIES)
    for shade in range(90, 200, 10):  # all the time as much
        ids, _ = moving(*frame(30, shade=shade))
    assert ids[20, 35] == 4


def test_what_is_too_uncertain_for_the_map_carries_on_a_track():
    tracker = PanopticTracker(CATEGORIES)
    image, prediction = frame(30)
    tracker(image, prediction)
    mask = np.zeros(SIZE, bool)
    mask[15:25, 32:42] = True
    elsewhere = np.roll(mask, 30, axis=1)
    candidates = [Candidate(mask, 0, 0.2), Candidate(elsewhere, 0, 0.2)]
    image, prediction = frame()
    ids, segments = tracker(image, prediction._replace(candidates=candidates))
    assert (ids == 4).sum() == 100 and (ids[mask] == 4).all()
    assert segments[-1] == {
        "id": 4,
        "isthing": True,
        "category_id": 0,
        "score": 0.2,
        "area": 100,
        "track_id": 4,
    }
    assert {s["id"] for s in segments} == {2, 3, 4}


def test_candidates_over_things_are_left_out():
    tracker = PanopticTracker(CATEGORIES)
    tracker(*frame(30))
    mask = np.zeros(SIZE, bool)
    mask[15:25, 29:39] = True
    image, prediction = frame(30)
    ids, segments = tracker(image, prediction._replace(candidates=[Candidate(mask, 0, 0.3)]))
    assert [s["id"] for s in segments] == [2, 3, 4] and (ids == 4).sum() == 100


def test_frames_without_segments():
    tracker = PanopticTracker(CATEGORIES)
    nothing = FramePrediction(np.zeros(SIZE, np.int32), [])
    ids, segments = tracker(np.zeros((*SIZE, 3), np.uint8), nothing)
    assert not ids.any() and segments == []


def test_memory_does_not_grow_with_the_frames():
    tracker = PanopticTracker(CATEGORIES, max_lost=3)

    def some_frames(count):
        for t in range(count):
            tracker(*frame(10 * (t % 7), 10 * (t % 5), shade=90 + 60 * (t % 2)))

    some_frames(100)
    tracemalloc.start()
    some_frames(20)
    before = tracemalloc.get_traced_memory()[0]
    some_frames(400)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 2**16
