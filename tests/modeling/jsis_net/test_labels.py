"""The labels of the semantic branch against the dataset's."""

import pytest
import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks

from spatialflow.modeling.jsis_net.labels import SemanticLabels

COCO = SemanticLabels(num_things=80, num_stuff=54, thing_labels=(0,))
CITYSCAPES = SemanticLabels(num_things=8, num_stuff=19, thing_labels=tuple(range(11, 19)))


def things(masks, *classes):
    found = Instances((2, 4), gt_masks=masks)
    found.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return found


def test_every_class_has_a_label():
    assert len(COCO) == 133
    assert len(CITYSCAPES) == 19
    assert len(SemanticLabels(1, 5, (0,))) == 5  # a single thing class is 'other'


def test_things_have_the_labels_after_stuff():
    masks = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 0]], [[0, 1, 1, 0], [0, 0, 0, 1]]]).bool()
    labels = torch.tensor([[0, 0, 0, 0], [1, 53, 255, 0]])
    found = COCO.targets(labels, things(BitMasks(masks), 7, 79))
    # The last pixel of the first row is of a crowd.
    assert found.tolist() == [[60, 132, 132, 255], [0, 52, 255, 132]]


def test_other_may_be_any_label():
    labels = SemanticLabels(num_things=2, num_stuff=4, thing_labels=(2,))
    masks = BitMasks(torch.ones(1, 2, 4, dtype=torch.bool))
    found = labels.targets(torch.tensor([[0, 1, 2, 3]] * 2), things(masks, 1))
    assert found.tolist() == [[0, 1, 4, 2]] * 2
    scores = torch.randn(1, 5, 2, 4)
    folded = labels.fold(scores)
    torch.testing.assert_close(folded[:, 2], scores[:, 3:].exp().sum(dim=1).log())
    assert torch.equal(folded[:, [0, 1, 3]], scores[:, :3])


def test_polygons_are_masks_too():
    square = [torch.tensor([0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 0.0, 2.0]).double().numpy()]
    found = COCO.targets(torch.zeros(2, 4, dtype=torch.int64), things(PolygonMasks([square]), 4))
    assert found.tolist() == [[57, 57, 255, 255]] * 2


def test_labels_of_things_stay_where_the_dataset_has_them():
    labels = torch.tensor([[11, 3, 18, 255]] * 2)
    none = things(BitMasks(torch.zeros(0, 2, 4, dtype=torch.bool)))
    assert torch.equal(CITYSCAPES.targets(labels, none), labels)
    scores = torch.randn(1, 19, 2, 4)
    assert CITYSCAPES.fold(scores) is scores


@pytest.mark.parametrize("labels", [COCO, CITYSCAPES])
def test_folding_keeps_the_probabilities(labels):
    scores = torch.randn(2, len(labels), 3, 4)
    probabilities = labels.fold(scores).softmax(dim=1)
    assert probabilities.shape == (2, labels.num_stuff, 3, 4)
    if labels is COCO:
        expected = scores.softmax(dim=1)
        torch.testing.assert_close(probabilities[:, 1:], expected[:, :53])
        torch.testing.assert_close(probabilities[:, 0], expected[:, 53:].sum(dim=1))
