"""Masks of the whole image: sizes, boxes, NMS."""

import pytest
import torch
from detectron2.structures import Boxes

from spatialflow.modeling.spinet.dense_masks import DenseMasks, mask_nms


def logits_of(*boxes, size=(10, 12)):
    logits = torch.full((len(boxes), *size), -8.0)
    for mask, (x1, y1, x2, y2) in zip(logits, boxes, strict=True):
        mask[y1:y2, x1:x2] = 8
    return logits


def test_boxes_are_those_of_the_cells_within_the_image():
    masks = DenseMasks(logits_of((1, 2, 4, 6), (9, 8, 12, 10), (11, 0, 12, 1)), (38, 42))
    expected = [[4, 8, 16, 24], [36, 32, 42, 38], [0, 0, 0, 0]]
    assert masks.boxes().tensor.tolist() == expected
    assert len(masks[1:]) == 2


def test_masks_at_the_size_of_the_result():
    masks = DenseMasks(logits_of((1, 2, 4, 6)), (40, 48))
    small = masks.at_size((40, 48))[0]
    rows, columns = small.nonzero().amin(0).tolist(), small.nonzero().amax(0).tolist()
    assert rows == [8, 4] and columns == [23, 15]
    large = masks.at_size((80, 96))[0]
    assert torch.equal(large.any(1).nonzero()[[0, -1], 0], torch.tensor([16, 47]))
    assert large.sum() == pytest.approx(4 * small.sum().item(), rel=0.02)
    assert masks[:0].at_size((7, 9)).shape == (0, 7, 9)


def test_padding_is_not_seen_at_the_size_of_the_result():
    masks = DenseMasks(logits_of((0, 0, 12, 10)), (37, 41))
    assert masks.at_size((37, 41)).all()


def test_crops_are_those_of_each_mask_in_its_box():
    masks = DenseMasks(logits_of((0, 0, 6, 10), (6, 0, 12, 10)), (40, 48))
    crops = masks.in_boxes(Boxes(torch.tensor([[0.0, 0, 48, 40]] * 2)), 8)
    assert crops.shape == (2, 8, 8)
    assert (crops[0, :, :3] > 0.99).all() and (crops[0, :, 5:] < 0.01).all()
    torch.testing.assert_close(crops[1], crops[0].flip(-1))


def test_nms_is_by_masks_and_class_by_class():
    masks = logits_of((0, 0, 6, 6), (0, 0, 6, 5), (0, 0, 6, 5), (0, 0, 6, 2)) > 0
    scores = torch.tensor([0.6, 0.9, 0.7, 0.8])
    assert mask_nms(masks, scores, torch.tensor([0, 0, 1, 0]), 0.5).tolist() == [1, 3, 2]
    assert mask_nms(masks, scores, torch.zeros(4), 0.3).tolist() == [1]
    assert mask_nms(masks[:0], scores[:0], torch.zeros(0), 0.5).tolist() == []


def test_what_was_dropped_drops_nothing():
    masks = logits_of((0, 0, 6, 1), (2, 0, 8, 1), (4, 0, 10, 1)) > 0  # IoU 0.5 with the next
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert mask_nms(masks, scores, torch.zeros(3), 0.4).tolist() == [0, 2]
