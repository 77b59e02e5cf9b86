"""Masks pasted when they are looked at: the same masks, and no more of them than needed."""

import pickle

import numpy as np
import pytest
import torch
from builders import make_input, tiny_model
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import paste_masks_in_image
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from pycocotools import mask as mask_util

from spatialflow.modeling import pasted_masks
from spatialflow.modeling.panoptic import MergeSettings, merge_panoptic
from spatialflow.modeling.pasted_masks import PastedMasks

SIZE = (40, 60)


@pytest.fixture
def masks():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(6, 2, 2, generator=generator).sort(dim=1).values
    boxes = (corners * torch.tensor([SIZE[1], SIZE[0]])).flatten(1)
    return PastedMasks(torch.rand(6, 28, 28, generator=generator), boxes, SIZE)


@pytest.fixture
def expected(masks):
    return paste_masks_in_image(masks.probabilities, masks.boxes, SIZE, 0.5)


@pytest.fixture
def pasted(monkeypatch):
    """How many masks each call has pasted."""
    counts = []

    def counting(probabilities, *args):
        counts.append(len(probabilities))
        return paste_masks_in_image(probabilities, *args)

    monkeypatch.setattr(pasted_masks, "paste_masks_in_image", counting)
    return counts


def test_masks_lie_on_their_boxes():
    probabilities = torch.zeros(2, 28, 28)
    probabilities[0] = 0.9
    probabilities[1, :, 14:] = 0.9
    boxes = torch.tensor([[2.0, 1, 6, 4], [0, 0, 8, 5]])
    expected = torch.zeros(2, 5, 8, dtype=torch.bool)
    expected[0, 1:4, 2:6] = True
    expected[1, :, 4:] = True
    masks = PastedMasks(probabilities, boxes, (5, 8))
    boxes += 100  # of no consequence
    assert torch.equal(masks.tensor, expected)


def test_no_masks():
    masks = PastedMasks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 8))
    assert masks.tensor.shape == (0, 5, 8) and masks.tensor.dtype == torch.bool
    assert list(masks) == [] and len(masks[[]]) == 0


def test_it_stands_for_the_tensor(masks, expected):
    assert expected.any() and not expected.all()
    assert torch.equal(masks, expected)
    assert masks.shape == expected.shape and masks.sum() == expected.sum()
    assert torch.equal(masks & expected, expected)
    assert torch.equal(masks | ~expected, torch.ones_like(expected))
    assert torch.equal(expected & masks, expected) and torch.equal(~masks, ~expected)
    assert (masks == expected).all() and not (masks != expected).any()
    assert (masks == masks[:]).all() and not (masks ^ expected).any()
    assert torch.equal(torch.cat([masks, masks[:1]]), torch.cat([expected, expected[:1]]))
    assert np.array_equal(np.asarray(masks), expected.numpy())
    assert np.asarray(masks, dtype=np.uint8).dtype == np.uint8
    assert repr(masks) == "PastedMasks(6 masks of 40x60)"


@pytest.mark.parametrize(
    "item",
    [
        slice(1, 4),
        [3, 0],
        torch.tensor([5, 2]),
        torch.tensor([True, False, True, False, False, True]),
        (slice(None), 3),
    ],
    ids=str,
)
def test_parts_are_parts_of_the_tensor(masks, expected, item):
    assert torch.equal(torch.as_tensor(np.asarray(masks[item])), expected[item])


def test_one_mask_and_the_walk_over_all(masks, expected, pasted):
    assert torch.equal(masks[4], expected[4]) and torch.equal(masks[-1], expected[-1])
    assert torch.equal(masks[torch.tensor(2)], expected[2])
    assert torch.equal(masks[np.int64(2)], expected[2])
    assert all(torch.equal(a, b) for a, b in zip(masks, expected, strict=True))
    assert set(pasted) == {1}


def test_another_type_is_a_tensor(masks, expected):
    assert torch.equal(masks.to(dtype=torch.bool, device="cpu"), expected)
    assert torch.equal(masks.to(torch.float32), expected.float())
    assert isinstance(masks.to(torch.device("cpu")), PastedMasks)


def test_detectron2s_own_merge_takes_it(masks, expected):
    lazy, eager = (instances_with(m) for m in (masks, expected))
    eager.scores = lazy.scores
    stuff = torch.zeros(SIZE, dtype=torch.int64)
    merged = [combine_semantic_and_instance_outputs(i, stuff, 0.5, 1, 0.1) for i in (lazy, eager)]
    assert torch.equal(merged[0][0], merged[1][0]) and merged[0][1] == merged[1][1]
    assert merged[0][1]


def test_instances_are_put_together(masks, expected):
    both = Instances.cat([instances_with(masks)[:2], instances_with(masks)[2:]])
    assert isinstance(both.pred_masks, PastedMasks) and torch.equal(both.pred_masks, expected)


def test_it_goes_into_files_without_the_pasted_masks(masks, expected):
    assert masks.tensor.numel() == expected.numel()
    small = len(pickle.dumps(masks))
    assert small < len(pickle.dumps(expected.float()))
    assert torch.equal(pickle.loads(pickle.dumps(masks)), expected)
    assert torch.equal(masks.to("cpu").tensor, expected) and torch.equal(masks.cpu(), expected)


def instances_with(masks):
    instances = Instances(SIZE, pred_boxes=Boxes(torch.rand(6, 4).cumsum(dim=1) * 10))
    instances.scores, instances.pred_classes = torch.rand(6), torch.zeros(6, dtype=torch.int64)
    instances.pred_masks = masks
    return instances


def test_detectron2_takes_it_for_masks(masks, expected):
    torch.manual_seed(0)
    lazy, eager = (instances_with(m) for m in (masks, expected))
    eager.pred_boxes, eager.scores = lazy.pred_boxes, lazy.scores
    rles = [
        [
            mask_util.decode(found["segmentation"])
            for found in instances_to_coco_json(i.to("cpu"), 1)
        ]
        for i in (lazy, eager)
    ]
    assert np.array_equal(*rles)
    drawn = []
    for instances in (lazy, eager):
        visualizer = Visualizer(np.zeros((*SIZE, 3), np.uint8), Metadata(thing_classes=["a"]))
        # Colours are drawn at random.
        np.random.seed(0)
        drawn.append(visualizer.draw_instance_predictions(instances).get_image().any(axis=2))
    assert (drawn[0] == drawn[1]).mean() > 0.99
    assert torch.equal(lazy[lazy.scores > 0.5].pred_masks, expected[lazy.scores > 0.5])
    assert torch.equal(lazy[2].pred_masks, expected[2:3])


def test_the_merge_pastes_what_passes_its_threshold(masks, expected, pasted):
    scores = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.36, 0.5])
    classes, stuff = torch.arange(6), torch.ones(SIZE, dtype=torch.int64)
    settings = vars(MergeSettings(stuff_area_limit=1))
    args = (masks.boxes, scores, classes, stuff)
    panoptic, segments = merge_panoptic(masks, *args, num_stuff_labels=2, **settings)
    assert pasted == [3]
    plain, plain_segments = merge_panoptic(expected, *args, num_stuff_labels=2, **settings)
    assert torch.equal(panoptic, plain) and segments == plain_segments


def test_the_model_pastes_nothing_that_nobody_looks_at(pasted):
    torch.manual_seed(0)
    model = tiny_model(panoptic_on=False).eval()
    torch.nn.init.zeros_(model.detector.cls_score.bias)
    (result,) = model([make_input()])
    assert len(result["instances"]) > 10 and pasted == []
    assert result["instances"].pred_masks.shape[1:] == result["instances"].image_size
    assert pasted == [len(result["instances"])]
