"""Which thing is which, on drawn masks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spatialflow.tracking import Detection, Tracker
from spatialflow.tracking.regions import Region

SIZE = (60, 120)


def box(x, y=30, width=12, height=12, category_id=0, confident=True):
    """A detection of a box around a point, cut at the frame's edges; None outside."""
    mask = np.zeros(SIZE, bool)
    left, top = round(x - width / 2), round(y - height / 2)
    mask[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
    return Detection(Region.of(mask), category_id, confident) if mask.any() else None


def ids_of(tracker, *frames):
    return [tracker.update([d for d in frame if d is not None]) for frame in frames]


@given(st.integers(-70, 70), st.integers(-140, 140), st.integers(1, 30), st.integers(1, 30))
def test_intersections_are_those_of_whole_masks(down, right, height, width):
    rng = np.random.default_rng(0)
    one, other = np.zeros((2, *SIZE), bool)
    one[20:40, 30:60] = rng.random((20, 30)) > 0.3
    other[10 : 10 + height, 25 : 25 + width] = True
    moved = np.zeros((3 * SIZE[0], 3 * SIZE[1]), bool)
    moved[60 + 10 + down : 60 + 10 + down + height, 120 + 25 + right : 145 + right + width] = True
    expected = np.count_nonzero(moved[60:120, 120:240] & one)
    a, b = Region.of(one), Region.of(other).moved(np.array([down, right]))
    assert a.intersection(b) == b.intersection(a) == expected


def test_ids_stay_with_moving_things():
    frames = [[box(10 + 4 * t, 15), box(110 - 3 * t, 45)] for t in range(20)]
    assert ids_of(Tracker(), *frames) == [[1, 2]] * 20


def test_crossing_of_one_class_by_constant_velocity():
    frames = [[box(15 + 4 * t, 28, 14, 14), box(105 - 4 * t, 33)] for t in range(22)]
    assert ids_of(Tracker(), *frames) == [[1, 2]] * 22


def test_hidden_for_ten_frames():
    """It goes behind a wall of another class, is seen less and less, then not, and comes out."""
    tracker, found = Tracker(), []
    for t in range(30):
        mask = np.zeros(SIZE, bool)
        mask[24:36, 4 + 3 * t : 16 + 3 * t] = True
        mask[:, 40:82] = False  # the wall
        frame = [Detection(Region.of(mask), 0)] if mask.any() else []
        found.append(tracker.update(frame))
    assert [] in found and found.count([]) >= 10
    assert all(ids in ([1], []) for ids in found)


def test_lost_for_too_long_is_gone():
    tracker = Tracker(max_lost=5)
    assert tracker.update([box(30)]) == [1]
    assert ids_of(tracker, *[[]] * 5) == [[]] * 5 and len(tracker) == 1
    assert tracker.update([]) == [] and len(tracker) == 0
    assert tracker.update([box(30)]) == [2]


def test_classes_are_never_mixed():
    tracker = Tracker()
    assert tracker.update([box(30, category_id=0)]) == [1]
    assert tracker.update([box(30, category_id=1)]) == [2]
    assert tracker.update([box(30, category_id=0)]) == [1]


def test_low_scores_carry_on_a_track_and_begin_none():
    tracker = Tracker()
    assert tracker.update([box(30, confident=False)]) == [None]
    assert tracker.update([box(30)]) == [1]
    assert tracker.update([box(32, confident=False), box(90, confident=False)]) == [1, None]
    assert tracker.update([box(34)]) == [1]
    assert ids_of(tracker, [], []) == [[], []]
    assert tracker.update([box(36, confident=False)]) == [None]  # it was lost
    assert tracker.update([box(36)]) == [1]


def test_a_confident_detection_goes_before_one_of_low_score():
    tracker = Tracker()
    tracker.update([box(30)])
    assert tracker.update([box(30, confident=False), box(32)]) == [None, 1]


def test_reset_forgets_tracks_and_not_ids():
    tracker = Tracker(first_id=6)
    assert tracker.update([box(30), box(60)]) == [6, 7]
    tracker.reset()
    assert tracker.update([box(30)]) == [8]


def test_a_thing_that_grows_or_shrinks_slowly_is_one():
    sizes = [*range(8, 40, 2), *range(40, 8, -1)]
    frames = [[box(60, 30, size, size)] for size in sizes]
    assert ids_of(Tracker(), *frames) == [[1]] * len(frames)


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 119), st.integers(0, 59)), max_size=5), max_size=8)
)
def test_each_id_is_given_once_a_frame(frames):
    tracker = Tracker(max_lost=2)
    for places in frames:
        ids = tracker.update([box(x, y) for x, y in places])
        assert len(set(ids)) == len(places) and None not in ids
    assert len(tracker) <= 3 * 5
