"""ATSS and the quality focal loss against loops over boxes and anchors."""

import pytest
import torch
from builders import THINGS, ground_truth, tiny_detector
from detectron2.structures import Boxes, pairwise_iou
from torchvision.ops import generalized_box_iou

from spatialflow.modeling.detection import AnchorTargets, DensePredictions
from spatialflow.modeling.focal_loss import IGNORED, quality_focal_loss_in_parts
from spatialflow.modeling.gfl import GFLDetector, atss

K = THINGS
STRIDES = (8, 16)


def anchors_of(size, side=4):
    """Square anchors, ``side`` cells large, at the points of two levels."""
    levels = []
    for stride in STRIDES:
        ys, xs = (torch.arange(0, n, stride, dtype=torch.float32) for n in size)
        y, x = (v.flatten() for v in torch.meshgrid(ys, xs, indexing="ij"))
        half = side * stride / 2
        levels.append(Boxes(torch.stack([x - half, y - half, x + half, y + half], dim=1)))
    return levels


def reference(boxes, levels, inside, count=9):
    """Algorithm 1 of ATSS, a box at a time."""
    flat = Boxes.cat(levels)
    iou, centers = pairwise_iou(boxes, flat), flat.get_centers()
    best = {}
    for i, box in enumerate(boxes.tensor):
        middle, chosen, start = (box[:2] + box[2:]) / 2, [], 0
        for level in levels:
            own = [j for j in range(start, start + len(level)) if inside[j]]
            chosen += sorted(own, key=lambda j: float((centers[j] - middle).norm()))[:count]
            start += len(level)
        threshold = iou[i, chosen].mean() + iou[i, chosen].std()
        for j in chosen:
            within = (centers[j] > box[:2]).all() and (centers[j] < box[2:]).all()
            better = j not in best or iou[i, j] > iou[best[j], j]
            if iou[i, j] >= threshold and within and better:
                best[j] = i
    return best


@pytest.mark.parametrize("seed", range(8))
def test_atss_is_its_algorithm(seed):
    torch.manual_seed(seed)
    levels = anchors_of((96, 128))
    # Off the grid, so that no two anchors are equally far.
    center = torch.rand(4, 2) * torch.tensor([128.0, 96.0])
    sides = torch.rand(4, 2) * 60 + 5
    boxes = Boxes(torch.cat([center - sides / 2, center + sides / 2], dim=1))
    inside = torch.ones(sum(map(len, levels)), dtype=torch.bool)
    matched, labels = atss(boxes, levels, inside)
    found = {j: int(matched[j]) for j in labels.nonzero().flatten().tolist()}
    assert found == reference(boxes, levels, inside)
    assert found


@pytest.mark.parametrize("seed", range(4))
def test_atss_does_not_depend_on_the_padding(seed):
    torch.manual_seed(seed)
    levels = anchors_of((32, 160))
    center = torch.rand(3, 2) * 32
    boxes = Boxes(torch.cat([center - 15, center + 15], dim=1))
    # Of the second level 2x2 anchors are in the image: fewer than the candidates of a level.
    inside = Boxes.cat(levels).get_centers()[:, 0] < 32
    matched, labels = atss(boxes, levels, inside)
    found = {j: int(matched[j]) for j in labels.nonzero().flatten().tolist()}
    assert found == reference(boxes, levels, inside)
    alone = anchors_of((32, 32))
    everywhere = torch.ones(sum(map(len, alone)), dtype=torch.bool)
    matched_alone, labels_alone = atss(boxes, alone, everywhere)
    assert torch.equal(labels[inside], labels_alone)
    assert torch.equal(matched[inside] * labels_alone, matched_alone * labels_alone)


def test_anchors_in_padding_are_not_assigned():
    levels = anchors_of((64, 64))
    centers = Boxes.cat(levels).get_centers()
    inside = centers[:, 0] < 32
    boxes = Boxes(torch.tensor([[2.0, 3.0, 61.0, 62.0]]))
    _, labels = atss(boxes, levels, inside)
    assert labels.any() and not labels[~inside].any()


def test_without_boxes_nothing_is_assigned():
    levels = anchors_of((64, 64))
    inside = torch.ones(sum(map(len, levels)), dtype=torch.bool)
    matched, labels = atss(Boxes(torch.zeros(0, 4)), levels, inside)
    assert not labels.any() and matched.shape == labels.shape == inside.shape


def test_quality_focal_loss_by_hand(monkeypatch):
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1], [-0.5, 0.7]], requires_grad=True)
    labels, quality = torch.tensor([1, 2, IGNORED]), torch.tensor([0.8, 0.0, 0.5])
    expected = torch.tensor(0.0)
    for row, target in ((0, (0.0, 0.8)), (1, (0.0, 0.0))):
        for x, y in zip(logits[row], target, strict=True):
            p = x.sigmoid()
            entropy = -((1 - y) * (1 - p).log() + y * p.log())  # eq. 2, beta = 2
            expected = expected + (y - p) ** 2 * entropy
    monkeypatch.setattr("spatialflow.modeling.focal_loss.ANCHORS_AT_A_TIME", 2)
    torch.testing.assert_close(quality_focal_loss_in_parts(logits, labels, quality, 2.0), expected)


def detector():
    torch.manual_seed(0)
    return tiny_detector(
        GFLDetector, sizes=[[16], [32]], ratios=[1.0], strides=[8, 16], size_divisibility=16
    )


def test_losses_by_hand():
    model, grid = detector(), [(8, 8), (4, 4)]
    anchors = model.anchor_generator([torch.zeros(1, 1, *g) for g in grid])
    gt = ground_truth((64, 64), [(6, 7, 30, 25), (33, 20, 60, 61)], [0, 1])
    no_crowd = torch.zeros(64, 64, dtype=torch.bool)
    targets = model.label_anchors(anchors, [gt], [no_crowd], grid)
    total = sum(map(len, anchors))
    logits, deltas = torch.randn(1, total, K), torch.randn(1, total, 4) * 0.1
    parts = [len(x) for x in anchors]
    predictions = DensePredictions(list(logits.split(parts, 1)), list(deltas.split(parts, 1)))
    losses = model.losses(predictions, anchors, targets)
    rows = ((targets.labels[0] >= 0) & (targets.labels[0] < K)).nonzero().flatten().tolist()
    assert rows
    quality, weighted, weights = torch.zeros(total), 0.0, 0.0
    for j in rows:
        box = model.decode(deltas[0, j, None], Boxes.cat(anchors).tensor[j, None])
        truth = targets.boxes[0][j, None]
        quality[j] = pairwise_iou(Boxes(box), Boxes(truth))
        weight = logits[0, j].sigmoid().max()
        weighted += weight * (1 - generalized_box_iou(box, truth)[0, 0])
        weights += weight
    expected = quality_focal_loss_in_parts(logits[0], targets.labels[0], quality, 2.0) / len(rows)
    torch.testing.assert_close(losses["loss_cls"], expected)
    torch.testing.assert_close(losses["loss_box_reg"], 2 * weighted / weights.clamp(min=1))


def test_losses_without_things_are_finite_and_have_gradients():
    model = detector()
    features = [torch.randn(1, model.cls_score.in_channels, 8, 8) for _ in STRIDES]
    predictions = model(features, features)
    anchors = model.anchor_generator(features)
    total = sum(map(len, anchors))
    targets = AnchorTargets(torch.full((1, total), K), [torch.zeros(total, 4)])
    losses = model.losses(predictions, anchors, targets)
    sum(losses.values()).backward()
    assert losses["loss_box_reg"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
