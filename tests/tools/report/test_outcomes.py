"""What became of the segments, on hand-made and random maps."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_run import CAT, DOG, GRASS, IDS, SKY

from spatialflow.evaluation import PanopticCounts, match_segments
from spatialflow.tools.report import read_saved
from spatialflow.tools.report.outcomes import (
    ImageOutcome,
    describe_segments,
    image_quality,
    match_image,
    match_images,
    read_maps,
)

GRASS_IOU = 258 / 282  # 24 pixels went to the false-positive dog


@pytest.fixture
def images(results):
    return read_saved(str(results)).images


def test_confusions(images):
    first, second = (match_image(image).confusions() for image in images)
    pairs = [(GRASS, GRASS), (SKY, SKY), (CAT, CAT), (CAT, DOG), (DOG, None), (None, DOG)]
    assert first == Counter(pairs)
    assert second == {(GRASS, GRASS): 1}  # the dog on the crowd is neither right nor wrong


def test_image_quality(images):
    categories = [{"id": i, "name": str(i), "isthing": i in (CAT, DOG)} for i in sorted(IDS)]
    first, second = (
        image_quality(match_image(image), PanopticCounts(categories)) for image in images
    )
    assert first["pq"] == pytest.approx((GRASS_IOU + 1 / 1.5 + 0 + 1) / 4)
    assert (first["tp"], first["fp"], first["fn"]) == (3, 2, 2)
    assert (second["pq"], second["tp"], second["fp"], second["fn"]) == (1, 1, 0, 0)


def test_describe_segments(images):
    def brief(segments):
        return [(s["category_id"], s["state"], s["partner"]) for s in segments]

    truth, predicted = describe_segments(match_image(images[0]), *read_maps(images[0]), images[0])
    assert brief(truth) == [
        (GRASS, "match", 0),
        (SKY, "match", 1),
        (CAT, "match", 2),
        (CAT, "confused", 3),
        (DOG, "missed", None),
    ]
    assert brief(predicted) == [
        (GRASS, "match", 0),
        (SKY, "match", 1),
        (CAT, "match", 2),
        (DOG, "confused", 3),
        (DOG, "false_positive", 0),
    ]
    assert truth[0]["iou"] == predicted[0]["iou"] == pytest.approx(GRASS_IOU)
    assert predicted[4]["iou"] == pytest.approx(24 / 282)
    assert [s["area"] for s in predicted] == [258, 218, 100, 60, 24]
    assert [s["score"] for s in predicted] == [None, None, 0.9, 0.8, 0.6]

    truth, predicted = describe_segments(match_image(images[1]), *read_maps(images[1]), images[1])
    assert brief(truth) == [(GRASS, "match", 0), (DOG, "crowd", 1)]
    assert brief(predicted) == [(GRASS, "match", 0), (DOG, "ignored", 1)]


def test_processes_give_the_same_in_order(images):
    one, two = (match_images(images * 3, workers) for workers in (1, 2))
    assert [o.confusions() for o in one] == [o.confusions() for o in two]


def test_errors_name_the_files(images):
    with pytest.raises(ValueError, match=r"scene0.png, .*scene1.png: the prediction is 16x16"):
        match_image(replace(images[0], png=images[1].png, segments=images[1].segments))
    with pytest.raises(FileNotFoundError, match="elsewhere.png"):
        match_image(replace(images[0], png="elsewhere.png"))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_confusions_add_up_to_what_pq_counts(seed):
    rng = np.random.default_rng(seed)
    gt_map = np.repeat(np.repeat(rng.integers(0, 5, (4, 4)), 3, 0), 3, 1)
    pred_map = np.where(rng.random(gt_map.shape) < 0.8, gt_map, rng.integers(0, 5, gt_map.shape))
    gt, pred = (
        [
            {"id": i, "category_id": int(rng.integers(1, 4)), "iscrowd": int(rng.random() < 0.2)}
            for i in np.unique(m[m > 0]).tolist()
        ]
        for m in (gt_map, pred_map)
    )
    blank = [[{**s, "category_id": 0} for s in side] for side in (pred, gt)]
    matches = match_segments(pred_map, pred, gt_map, gt)
    any_class = match_segments(pred_map, blank[0], gt_map, blank[1])
    confusions = ImageOutcome(matches, any_class).confusions()
    for c in (1, 2, 3):
        of_class = [s for s in gt if s["category_id"] == c and not s["iscrowd"]]
        assert sum(n for (a, _), n in confusions.items() if a == c) == len(of_class)
        assert confusions[c, c] == (matches.gt_categories[matches.gt_index] == c).sum()
        assert confusions[None, c] <= (matches.pred_categories[matches.spurious] == c).sum()
