"""The merge and the box fill, on hand-made maps and against a loop over pixels."""

import json

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spatialflow.config import config_dir, load_config
from spatialflow.modeling.painting import fill_rims
from spatialflow.modeling.panoptic import HeuristicMerge, Merge, merge_panoptic
from spatialflow.modeling.spatialflow import SpatialFlow

DEFAULTS = {
    "num_stuff_labels": 4,
    "thing_labels": (0,),
    "score_thresh": 0.37,
    "overlap_thresh": 0.37,
    "stuff_area_limit": 1,
    "box_fill_min_free": None,
}


def draw(*rows):
    """A map from rows of digits."""
    return torch.tensor([[int(c) for c in row] for row in rows])


def instance(mask_rows, score=0.9, category=0, box=None):
    mask = draw(*mask_rows).bool()
    return mask, torch.tensor(box or (0.0, 0, 0, 0)), torch.tensor(score), category


def merge(instances, stuff=None, size=(2, 4), **changes):
    """merge_panoptic of a list of :func:`instance`."""
    masks, boxes, scores, classes = zip(*instances, strict=True) if instances else ([],) * 4
    return merge_panoptic(
        torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool),
        torch.stack(boxes) if boxes else torch.zeros(0, 4),
        torch.stack(scores) if scores else torch.zeros(0),
        torch.tensor(classes, dtype=torch.int64),
        stuff,
        **{**DEFAULTS, **changes},
    )


def things(segments):
    return [(s["category_id"], s["area"]) for s in segments if s["isthing"]]


def stuff_of(segments):
    return [(s["category_id"], s["area"]) for s in segments if not s["isthing"]]


def test_things_by_score_then_stuff_then_void():
    panoptic, segments = merge(
        [
            instance(["0110", "0110"], score=0.5, category=7),
            instance(["1100", "0000"], score=0.75, category=8),
        ],
        stuff=draw("2233", "2230"),
    )
    # The lower score loses one of four pixels; 'other', bottom right, is void.
    assert panoptic.tolist() == [[1, 1, 2, 4], [3, 2, 2, 0]]
    assert panoptic.dtype == torch.int32
    assert segments == [
        {"id": 1, "isthing": True, "category_id": 8, "score": 0.75, "area": 2},
        {"id": 2, "isthing": True, "category_id": 7, "score": 0.5, "area": 3},
        {"id": 3, "isthing": False, "category_id": 2, "area": 1},
        {"id": 4, "isthing": False, "category_id": 3, "area": 1},
    ]


def test_equal_scores_keep_their_order():
    both = [instance(["1111", "0000"], category=c) for c in (5, 6, 4)]
    panoptic, segments = merge(both, overlap_thresh=0.0)
    assert things(segments) == [(5, 4)]


@pytest.mark.parametrize(
    ("score", "thresh", "kept"),
    [
        (0.5, 0.5, True),
        (np.nextafter(np.float32(0.5), np.float32(0)), 0.5, False),
        (np.float32(0.37), 0.37, True),
        (np.nextafter(np.float32(0.37), np.float32(0)), 0.37, False),
        (np.float32(0.7), 0.7, False),
    ],
)
def test_score_at_the_threshold_stays(score, thresh, kept):
    """Compared in double: 0.7 in float32 lies below 0.7, 0.37 above."""
    mask, box, _, category = instance(["1111", "0000"])
    _, segments = merge(
        [(mask, box, torch.tensor(np.float32(score)), category)], score_thresh=thresh
    )
    assert bool(segments) == kept


@pytest.mark.parametrize(("thresh", "kept"), [(0.25, True), (0.2499, False), (1.0, True)])
def test_overlap_at_the_threshold_stays(thresh, kept):
    pair = [instance(["1000", "0000"], score=0.9), instance(["1111", "0000"], score=0.8)]
    panoptic, segments = merge(pair, overlap_thresh=thresh)
    assert things(segments) == ([(0, 1), (0, 3)] if kept else [(0, 1)])


def test_overlap_counts_what_kept_instances_hold_and_no_more():
    panoptic, segments = merge(
        [
            instance(["1100", "0000"], score=0.9, category=1),
            instance(["1110", "0000"], score=0.8, category=2),  # two thirds taken: dropped
            instance(["0011", "0000"], score=0.7, category=3),  # nothing is taken
        ]
    )
    assert things(segments) == [(1, 2), (3, 2)]
    assert panoptic.tolist() == [[1, 1, 2, 2], [0, 0, 0, 0]]


def test_completely_covered_instance_is_no_segment():
    pair = [instance(["1111", "0000"]), instance(["1111", "0000"], score=0.8)]
    assert things(merge(pair, overlap_thresh=1.0)[1]) == [(0, 4)]


@pytest.mark.parametrize(("limit", "kept"), [(3, True), (4, False)])
def test_stuff_area_at_the_limit_stays_and_counts_free_pixels(limit, kept):
    panoptic, segments = merge(
        [instance(["1000", "1000"])], draw("2222", "3333"), stuff_area_limit=limit
    )
    assert stuff_of(segments) == ([(2, 3), (3, 3)] if kept else [])
    assert (panoptic == 0).sum() == (0 if kept else 6)


def test_several_thing_labels_among_the_stuff_labels():
    """As on Cityscapes, whose stuff head predicts all classes."""
    panoptic, segments = merge(
        [instance(["1000", "0000"], category=1)], draw("0123", "0123"), thing_labels=(2, 3)
    )
    assert stuff_of(segments) == [(0, 1), (1, 2)]
    assert panoptic.tolist() == [[1, 3, 0, 0], [2, 3, 0, 0]]


def test_no_stuff_label_left_out():
    assert stuff_of(merge([], draw("0123", "0123"), thing_labels=())[1]) == [
        (label, 2) for label in range(4)
    ]


def test_no_instances():
    panoptic, segments = merge([], draw("2222", "0000"), box_fill_min_free=0.5)
    assert panoptic.tolist() == [[1] * 4, [0] * 4]
    assert segments == [{"id": 1, "isthing": False, "category_id": 2, "area": 4}]


def test_nothing_at_all():
    panoptic, segments = merge([], draw("0000", "0000"))
    assert not panoptic.any()
    assert segments == []


def test_no_stuff_branch():
    panoptic, segments = merge([instance(["0110", "0000"])], None)
    assert panoptic.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]


def test_empty_mask_is_no_segment():
    panoptic, segments = merge([instance(["0000", "0000"]), instance(["1000", "0000"], 0.8, 3)])
    assert things(segments) == [(3, 1)]


def fill(instances, stuff=None, min_free=0.6, **changes):
    return merge(instances, stuff, box_fill_min_free=min_free, **changes)


def test_box_fill_joins_the_own_segment():
    panoptic, segments = fill([instance(["1000", "0000"], category=2, box=(0, 0, 2, 2))])
    assert panoptic.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert segments == [
        {"id": 1, "isthing": True, "category_id": 2, "score": pytest.approx(0.9), "area": 4}
    ]


def test_box_fill_makes_a_segment_of_a_detection_that_has_none():
    panoptic, segments = fill(
        [
            instance(["1100", "0000"], score=0.9, category=1, box=(0, 0, 1, 1)),
            instance(["1100", "0000"], score=0.8, category=2, box=(2, 0, 4, 2)),  # dropped mask
            instance(["0000", "0000"], score=0.7, category=3, box=(0, 1, 2, 2)),  # empty mask
        ]
    )
    assert panoptic.tolist() == [[1, 1, 2, 2], [3, 3, 2, 2]]
    assert things(segments) == [(1, 2), (2, 4), (3, 2)]


@pytest.mark.parametrize(("min_free", "filled"), [(0.75, True), (0.7501, False)])
def test_box_fill_at_the_threshold(min_free, filled):
    """Three of the box's four pixels are free."""
    panoptic, segments = fill([instance(["1000", "0000"], box=(0, 0, 2, 2))], min_free=min_free)
    assert things(segments) == [(0, 4 if filled else 1)]


def test_box_fill_takes_only_free_pixels():
    panoptic, segments = fill(
        [instance(["1000", "0000"], box=(0, 0, 4, 2))], draw("0000", "0022"), min_free=0.6
    )
    assert panoptic.tolist() == [[1, 1, 1, 1], [1, 1, 2, 2]]
    # 'other' and stuff regions that are too small count as free.
    panoptic, segments = fill(
        [instance(["1000", "0000"], box=(0, 0, 4, 2))], draw("0000", "0022"), stuff_area_limit=3
    )
    assert things(segments) == [(0, 8)]


def test_later_boxes_see_earlier_fills():
    pair = [
        instance(["0000", "0000"], score=0.5, category=2, box=(1, 0, 4, 2)),
        instance(["0000", "0000"], score=0.9, category=1, box=(0, 0, 2, 2)),
    ]
    panoptic, segments = fill(pair)
    assert panoptic.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert things(fill(pair, min_free=0.7)[1]) == [(1, 4)]


def test_box_sides_are_cut_to_whole_pixels():
    panoptic, _ = fill([instance(["0000", "0000"], box=(0.9, 0.0, 2.9, 1.99))])
    assert panoptic.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("box", [(1, 1, 1, 2), (1.2, 0, 1.8, 2), (4, 2, 4, 2), (3, 1, 2, 0)])
def test_box_without_area_fills_nothing(box):
    panoptic, segments = fill([instance(["0000", "0000"], box=box)], min_free=0.0)
    assert segments == []
    assert not panoptic.any()


def test_box_beyond_the_map_is_its_part_inside():
    panoptic, _ = fill([instance(["0000", "0000"], box=(-3.0, 1, 2, 9))], min_free=1.0)
    assert panoptic.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]


def test_detections_below_the_score_threshold_do_not_fill():
    assert fill([instance(["0000", "0000"], score=0.2, box=(0, 0, 4, 2))])[1] == []


def test_none_leaves_the_fill_out():
    panoptic, _ = fill([instance(["1000", "0000"], box=(0, 0, 4, 2))], min_free=None)
    assert panoptic.sum() == 1


def test_inputs_are_left_as_they_were():
    mask, box, score, _ = instance(["1100", "0000"], box=(0.5, 0, 4, 2))
    stuff = draw("2222", "2222")
    before = [x.clone() for x in (mask, box, score, stuff)]
    fill([(mask, box, score, 0)], stuff)
    assert all(torch.equal(a, b) for a, b in zip(before, (mask, box, score, stuff), strict=True))


# Scores around 0.37: the float32 on it, its neighbours, and ties far from it.
SCORES = [np.float32(x) for x in (0.37, 0.36999997, 0.37000003, 0.1, 0.5, 0.5, 0.9)]


@st.composite
def scenes(draw):
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    n, num_labels = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    side = st.floats(0, 1, width=32)
    corner = st.tuples(side, side, side, side)
    boxes = np.array(draw(st.lists(corner, min_size=n, max_size=n)), np.float32).reshape(n, 4)
    boxes = boxes.reshape(n, 2, 2) * np.float32([width, height])
    boxes = np.sort(boxes, axis=1).reshape(n, 4)
    masks = draw(hnp.arrays(bool, (n, height, width)))
    if n and draw(st.booleans()):  # rectangles rather than noise
        ys, xs = np.mgrid[:height, :width]
        masks = np.stack([(xs >= a) & (xs < c) & (ys >= b) & (ys < d) for a, b, c, d in boxes])
    settings = {
        "num_stuff_labels": num_labels,
        "thing_labels": draw(st.sets(st.integers(0, num_labels - 1))),
        "score_thresh": 0.37,
        "overlap_thresh": draw(st.sampled_from([0.0, 0.25, 0.37, 0.5, 1.0])),
        "stuff_area_limit": draw(st.integers(0, 12)),
        "box_fill_min_free": draw(st.sampled_from([None, 0.0, 0.5, 0.6, 1.0])),
    }
    stuff = hnp.arrays(np.int64, (height, width), elements=st.integers(0, num_labels - 1))
    return (
        masks,
        boxes,
        np.array(draw(st.lists(st.sampled_from(SCORES), min_size=n, max_size=n)), np.float32),
        np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int64),
        draw(st.none() | stuff),
        settings,
    )


def merge_pixel_by_pixel(masks, boxes, scores, classes, stuff, settings):
    """Sec. IV-B as loops: who owns each pixel, then the owners in order of their ids."""
    height, width = masks.shape[1:]
    pixels = [(y, x) for y in range(height) for x in range(width)]
    owner = {}
    best_first = [
        i for i in sorted(range(len(scores)), key=lambda i: -scores[i]) if float(scores[i]) >= 0.37
    ]
    for i in best_first:
        mask = [p for p in pixels if masks[i][p]]
        taken = sum(p in owner for p in mask)
        if mask and taken / len(mask) <= settings["overlap_thresh"]:
            owner |= {p: ("thing", i) for p in mask if p not in owner}
    if stuff is not None:
        for label in set(range(settings["num_stuff_labels"])) - settings["thing_labels"]:
            region = [p for p in pixels if stuff[p] == label and p not in owner]
            if len(region) >= settings["stuff_area_limit"]:
                owner |= {p: ("stuff", label) for p in region}
    for i in best_first if settings["box_fill_min_free"] is not None else []:
        x1, y1, x2, y2 = (int(side) for side in boxes[i])
        box = [(y, x) for y, x in pixels if y1 <= y < y2 and x1 <= x < x2]
        free = [p for p in box if p not in owner]
        if box and len(free) / len(box) >= settings["box_fill_min_free"]:
            owner |= {p: ("thing", i) for p in free}
    panoptic, segments = np.zeros((height, width), int), []
    labels = range(settings["num_stuff_labels"])
    for kind, i in [("thing", i) for i in best_first] + [("stuff", label) for label in labels]:
        region = [p for p in pixels if owner.get(p) == (kind, i)]
        if region:
            segment = {"id": len(segments) + 1, "isthing": kind == "thing", "area": len(region)}
            segment["category_id"] = int(classes[i]) if kind == "thing" else i
            if kind == "thing":
                segment["score"] = float(scores[i])
            segments.append(segment)
            for p in region:
                panoptic[p] = segment["id"]
    return panoptic, segments


@settings(max_examples=400, deadline=None, derandomize=True)
@given(scenes())
def test_merge_equals_a_loop_over_pixels(scene):
    *arrays, stuff, choices = scene
    panoptic, segments = merge_panoptic(
        *(torch.from_numpy(x) for x in arrays),
        None if stuff is None else torch.from_numpy(stuff),
        **choices,
    )
    expected, expected_segments = merge_pixel_by_pixel(*scene)
    np.testing.assert_array_equal(panoptic.numpy(), expected)
    assert segments == expected_segments


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_map_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(30, 40, 50, generator=generator) < 0.1
    boxes = torch.rand(30, 4, generator=generator) * 40
    scores = torch.rand(30, generator=generator)
    stuff = torch.randint(4, (40, 50), generator=generator)
    arrays = (masks, boxes, scores, torch.arange(30), stuff)
    choices = {**DEFAULTS, "box_fill_min_free": 0.5}
    panoptic, segments = merge_panoptic(*arrays, **choices)
    on_cuda, cuda_segments = merge_panoptic(*(x.cuda() for x in arrays), **choices)
    assert on_cuda.is_cuda
    assert torch.equal(on_cuda.cpu(), panoptic)
    assert cuda_segments == segments


def test_merge_comes_back_from_json():
    merge = HeuristicMerge((1, 2), 0.5, 0.25, 77, None)
    again = Merge.from_dict(json.loads(json.dumps(merge.as_dict())))
    assert again == merge and hash(again) == hash(merge)
    with pytest.raises(ValueError, match="the merge 'Other' is not registered"):
        Merge.from_dict({"name": "Other"})
    with pytest.raises(TypeError, match="pixels"):
        Merge.from_dict(merge.as_dict() | {"pixels": 1})


def rim_case(seed, count):
    """A half-painted map, soft masks of all sizes, and boxes around the instances."""
    torch.manual_seed(seed)
    size = (24, 30)
    panoptic = torch.randint(0, count + 3, size, dtype=torch.int32)
    panoptic[torch.rand(size) < 0.5] = 0
    center, sides = torch.rand(count, 2) * torch.tensor([30.0, 24.0]), torch.rand(count, 2) * 20 + 1
    return panoptic, torch.rand(count, 7, 7), torch.cat([center - sides, center + sides], dim=1)


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("min_prob", [0.2, 0.35, 0.9])
def test_rims_go_to_the_most_probable_thing_on_the_map(count, min_prob):
    panoptic, masks, boxes = rim_case(count, count)
    if count > 1:
        panoptic[panoptic == 2] = 0  # instance 1 has lost all its pixels
    expected = panoptic.clone()
    pasted = paste_masks_in_image(masks, Boxes(boxes), (24, 30), threshold=-1).float() / 255
    on_map = [i for i in range(count) if (panoptic == i + 1).any()]
    for y, x in (panoptic == 0).nonzero().tolist():
        best = max(on_map, key=lambda i: pasted[i, y, x], default=None)
        if best is not None and pasted[best, y, x] >= min_prob:
            expected[y, x] = best + 1
    before = panoptic.clone()
    fill_rims(panoptic, masks, boxes, min_prob)
    # Detectron2's pasting rounds probabilities to 1/255: pixels within it may differ.
    differ = (panoptic != expected).float().mean()
    assert differ <= 0.03
    assert torch.equal(panoptic[before != 0], before[before != 0])
    assert count < 2 or 2 not in panoptic


def test_rims_are_filled_after_the_stuff_and_before_the_boxes():
    mask = instance(["0110", "0110"], score=0.9, category=3, box=(0.0, 0, 4, 2))
    stuff = draw("0002", "0002")  # label 0 is the things' own: void where no mask is
    probability = torch.tensor([[[0.4, 0.9, 0.9, 0.4], [0.1, 0.9, 0.9, 0.4]]])
    plain, _ = merge([mask], stuff)
    filled, segments = merge(
        [mask], stuff, rim_fill_min_prob=0.35, mask_probs=probability, size=(2, 4)
    )
    assert plain.tolist() == [[0, 1, 1, 2], [0, 1, 1, 2]]
    assert filled.tolist() == [[1, 1, 1, 2], [0, 1, 1, 2]]
    assert things(segments) == [(3, 5)]
    boxed, _ = merge(
        [mask], stuff, rim_fill_min_prob=0.35, mask_probs=probability, box_fill_min_free=0.1
    )
    assert boxed.tolist() == [[1, 1, 1, 2], [1, 1, 1, 2]]


def test_the_fill_of_rims_is_a_key_and_keeps_probabilities():
    cfg = load_config(str(config_dir() / "Base-Small.yaml"))
    assert not SpatialFlow.build_merge(cfg).reads_probabilities
    cfg.MODEL.SPATIALFLOW.RIM_FILL.ENABLED = True
    merge = SpatialFlow.build_merge(cfg)
    assert merge.reads_probabilities and merge.rim_fill_min_prob == 0.35
    assert Merge.from_dict(merge.as_dict()) == merge
