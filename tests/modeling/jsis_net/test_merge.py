"""The pixelwise merge against references of a few lines."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialflow.modeling import MERGE_REGISTRY, Merge
from spatialflow.modeling.jsis_net import PixelwiseMerge
from spatialflow.modeling.jsis_net.merge import nested_stuff_labels, surviving_labels
from spatialflow.modeling.painting import paint_most_probable

SIZE = (40, 50)


def random_instances(count, seed=0, side=14):
    """Instances with overlapping boxes, smooth mask probabilities and unsorted scores."""
    torch.manual_seed(seed)
    center, sides = torch.rand(count, 2) * torch.tensor([50.0, 40.0]), torch.rand(count, 2) * 30 + 2
    boxes = torch.cat([center - sides / 2, center + sides / 2], dim=1)
    found = Instances(SIZE, pred_boxes=Boxes(boxes), scores=torch.rand(count))
    found.pred_boxes.clip(SIZE)
    found.pred_classes = torch.arange(count) % 3
    coarse = torch.rand(count, 1, 4, 4)
    found.pred_mask_probs = F.interpolate(coarse, (side, side), mode="bicubic")[:, 0].clamp(0, 1)
    return found


def pasted_floats(masks, boxes):
    """(n, H, W): each mask sampled bilinearly over its box, 0 outside of it."""
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(50) + 0.5, indexing="ij")
    result = []
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        grid = torch.stack([(x - x1) / (x2 - x1), (y - y1) / (y2 - y1)], dim=-1) * 2 - 1
        result.append(F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0])
    return torch.stack(result)


@pytest.mark.parametrize("seed", range(5))
def test_a_pixel_goes_to_the_most_probable_mask(seed):
    found = random_instances(12, seed)
    boxes = found.pred_boxes.tensor
    probabilities = pasted_floats(found.pred_mask_probs, boxes)
    probabilities[probabilities < 0.5] = 0
    expected = torch.where(probabilities.amax(0) > 0, probabilities.argmax(0) + 1, 0)
    painted = paint_most_probable(found.pred_mask_probs, boxes, SIZE)
    assert len(painted.unique()) > 4
    assert (painted == expected).float().mean() > 0.999  # but for rounding


def test_the_better_score_wins_a_tie():
    masks, boxes = torch.ones(2, 14, 14), torch.tensor([[5.0, 5, 25, 25], [15, 15, 35, 35]])
    painted = paint_most_probable(masks, boxes, SIZE)
    assert (painted[15:24, 15:24] == 1).all()
    assert (painted[26:34, 26:34] == 2).all()


def test_nothing_and_a_box_of_a_pixel_are_painted():
    assert not paint_most_probable(torch.zeros(0, 14, 14), torch.zeros(0, 4), SIZE).any()
    painted = paint_most_probable(torch.ones(1, 14, 14), torch.tensor([[3.0, 4, 4, 5]]), SIZE)
    assert painted.nonzero().tolist() == [[4, 3]]


def next_best_by_a_loop(scores, left_out, area_limit):
    """Sec. 2.2.2: remove the small labels, and ask each pixel for its best of the others."""
    kept = [label for label in range(len(scores)) if label not in left_out]
    best = torch.tensor(kept)[scores[kept].argmax(0)]
    areas = {label: int((best == label).sum()) for label in kept}
    large = [x for x in kept if areas[x] >= area_limit] or [max(kept, key=areas.__getitem__)]
    return torch.tensor(large)[scores[large].argmax(0)]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    labels=st.integers(2, 8),
    spread=st.floats(0.0, 4.0),
    limit=st.integers(0, 500),
)
def test_small_labels_give_way_to_the_next_best(seed, labels, spread, limit):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(labels, 20, 24, generator=generator)
    scores += spread * torch.randn(labels, 1, 1, generator=generator)
    nested = nested_stuff_labels(scores, (0,))
    expected = next_best_by_a_loop(scores, (0,), limit)
    areas = nested[0].flatten().bincount()
    if areas.max() < limit and (areas == areas.max()).sum() > 1:
        return  # either of the largest may stay
    assert torch.equal(surviving_labels(nested, limit), expected)


def test_the_map_has_things_over_stuff_and_no_void():
    found = random_instances(10)
    scores = torch.randn(5, *SIZE)
    scores[0] += 3  # 'other' everywhere
    scores[4] -= 2  # a small label
    merge = PixelwiseMerge(score_thresh=0.3, stuff_area_limit=60)
    panoptic, segments = merge(found, scores)
    assert panoptic.dtype == torch.int32 and panoptic.min() > 0
    assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
    assert all(s["area"] == (panoptic == s["id"]).sum() for s in segments)
    kept = found[found.scores >= 0.3]
    kept = kept[kept.scores.argsort(descending=True)]
    painted = paint_most_probable(kept.pred_mask_probs, kept.pred_boxes.tensor, SIZE)
    things = [s for s in segments if s["isthing"]]
    owners = [i for i in range(len(kept)) if (painted == i + 1).any()]
    assert [s["score"] for s in things] == [kept.scores[i] for i in owners]
    assert [s["category_id"] for s in things] == [kept.pred_classes[i] for i in owners]
    stuff = next_best_by_a_loop(scores, (0,), 60)
    for s in segments[len(things) :]:
        assert torch.equal(panoptic == s["id"], (stuff == s["category_id"]) & (painted == 0))
    assert all(s["category_id"] != 0 for s in segments[len(things) :])


def test_without_instances_all_is_stuff():
    panoptic, segments = PixelwiseMerge(stuff_area_limit=10**6)(
        random_instances(3)[:0], torch.randn(4, *SIZE)
    )
    assert (panoptic == 1).all() and len(segments) == 1 and not segments[0]["isthing"]


def test_a_pixel_that_no_instance_keeps_makes_no_segment():
    found = random_instances(1)
    found = Instances.cat([found, found])
    found.scores = torch.tensor([0.9, 0.8])
    found.pred_mask_probs = torch.stack([torch.full((14, 14), p) for p in (0.9, 0.8)])
    _, segments = PixelwiseMerge(stuff_area_limit=0)(found, torch.randn(3, *SIZE))
    assert [s["score"] for s in segments if s["isthing"]] == pytest.approx([0.9])


def test_it_is_remembered_by_name_and_settings():
    merge = PixelwiseMerge(thing_labels=(0, 3), score_thresh=0.4, stuff_area_limit=7)
    assert "PixelwiseMerge" in MERGE_REGISTRY
    assert Merge.from_dict(merge.as_dict()) == merge
