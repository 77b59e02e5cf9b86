"""Labels, losses and decoding of the detector, on anchors few enough to go through by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import CHANNELS, THINGS, filled, ground_truth, tiny_detector
from detectron2.structures import Boxes, Instances
from fvcore.nn import sigmoid_focal_loss

from spatialflow.modeling.boxes import covered_share
from spatialflow.modeling.detection import AnchorTargets, DensePredictions
from spatialflow.modeling.focal_loss import IGNORED

K = THINGS


def label(detector, image_size, gt=None, crowds=(), grid=(4, 4)):
    """Labels (rows, columns, A) and matched boxes of one image on a grid of stride 8."""
    anchors = detector.anchor_generator([torch.zeros(1, CHANNELS, *grid)])
    gt = ground_truth(image_size) if gt is None else gt
    crowd_mask = filled(image_size, crowds)
    targets = detector.label_anchors(anchors, [gt], [crowd_mask], [grid])
    shape = (*grid, detector.anchor_generator.num_anchors[0])
    return targets.labels[0].reshape(shape), targets.boxes[0].reshape(*shape, 4)


def square_detector(*sizes, **kwargs):
    """Square anchors around the points (8 i, 8 j)."""
    return tiny_detector(sizes=[sizes], ratios=[1.0], strides=[8], size_divisibility=8, **kwargs)


def test_anchors_are_positive_ignored_or_negative_by_their_iou():
    gt = ground_truth((32, 32), [(4, 4, 12, 12)], [2])
    # IoU with the anchors of its cell: 64/64, 64/144 = 0.44, 64/256 = 0.25.
    labels, boxes = label(square_detector(8, 12, 16), (32, 32), gt)
    assert labels[1, 1].tolist() == [2, IGNORED, K]
    assert boxes[1, 1, 0].tolist() == [4, 4, 12, 12]
    assert (labels.flatten() == K).sum() == labels.numel() - 2


def test_every_box_has_its_best_anchor_however_small():
    gt = ground_truth((32, 32), [(8, 8, 9, 9), (20, 20, 28, 28)], [1, 0])
    labels, boxes = label(square_detector(8), (32, 32), gt)
    assert labels[1, 1, 0] == 1
    assert boxes[1, 1, 0].tolist() == [8, 8, 9, 9]
    assert labels[3, 3, 0] == 0


def test_image_without_things_has_background_only():
    labels, boxes = label(square_detector(8, 12), (32, 32))
    assert (labels == K).all()
    assert boxes.isfinite().all()


def test_background_on_a_crowd_is_ignored():
    gt = ground_truth((32, 32), [(4, 4, 12, 12)], [0])
    # Covers columns 0 and 1, half of the anchors of column 2 and no more.
    labels, _ = label(square_detector(8), (32, 32), gt, crowds=[(0, 0, 16, 28)])
    expected = torch.full((4, 4), K)
    expected[:, :2] = IGNORED
    expected[1, 1] = 0
    assert torch.equal(labels[..., 0], expected)


def test_only_crowd_pixels_count_not_the_box_around_them():
    # Two crowd regions in opposite corners: their common box covers everything.
    labels, _ = label(square_detector(8), (32, 32), crowds=[(0, 0, 8, 8), (20, 20, 28, 28)])
    assert (labels == IGNORED).sum() == 2
    assert labels[0, 0] == labels[3, 3] == IGNORED


def test_covered_share():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1:3, 2:5] = True
    boxes = torch.tensor(
        [[2, 1, 5, 3], [0, 0, 6, 4], [4, 0, 6, 2], [-3, -3, 3, 2], [7, 7, 9, 9], [2, 2, 2, 2]]
    )
    found = covered_share(mask, boxes.float())
    torch.testing.assert_close(found, torch.tensor([1, 6 / 24, 1 / 4, 1 / 6, 0, 0]))


def test_image_with_crowds_only():
    labels, _ = label(square_detector(8), (32, 32), crowds=[(0, 0, 32, 32), (0, 0, 8, 8)])
    assert (labels == IGNORED).all()


def test_anchors_in_the_padding_of_a_larger_companion_are_ignored():
    labels, _ = label(square_detector(8), (20, 10))
    expected = torch.full((4, 4), IGNORED)
    expected[:3, :2] = K  # 20 x 10 pads to 24 x 16 by itself
    assert torch.equal(labels[..., 0], expected)


def test_labels_do_not_depend_on_the_companion():
    """The box's best anchor on the larger grid lies in the padding."""
    gt = ground_truth((32, 24), [(17, 12, 24, 20)], [1])
    detector = square_detector(8)
    alone, boxes = label(detector, (32, 24), gt, grid=(4, 3))
    beside, boxes_beside = label(detector, (32, 24), gt, grid=(4, 6))
    assert (alone == 1).any()
    assert torch.equal(beside[:, :3], alone)
    assert torch.equal(boxes_beside[:, :3][alone == 1], boxes[alone == 1])
    assert (beside[:, 3:] == IGNORED).all()


def test_every_level_is_cut_to_the_images_own_cells():
    detector = tiny_detector()
    grids = [(8, 16), (4, 8), (2, 4), (1, 2), (1, 1)]
    anchors = detector.anchor_generator([torch.zeros(1, CHANNELS, *grid) for grid in grids])
    no_crowd = torch.zeros(40, 65, dtype=torch.bool)
    targets = detector.label_anchors(anchors, [ground_truth((40, 65))], [no_crowd], grids)
    # 40 x 65 pads to 64 x 96: 8 x 12, 4 x 6, 2 x 3, 1 x 2 and 1 x 1 cells of nine anchors.
    assert (targets.labels[0] == K).sum() == 9 * (96 + 24 + 6 + 2 + 1)


def test_no_padding_by_the_backbone_is_allowed():
    detector = tiny_detector(sizes=[(8,)], ratios=[1.0], strides=[8], size_divisibility=0)
    assert (label(detector, (17, 32))[0] == K).sum() == 3 * 4


def focal(logit, positive, alpha=0.25, gamma=2.0):
    p = 1 / (1 + math.exp(-logit))
    p, alpha = (p, alpha) if positive else (1 - p, 1 - alpha)
    return -alpha * (1 - p) ** gamma * math.log(p)


def test_focal_loss_by_hand():
    detector = square_detector(8)
    logits = torch.tensor([[[0.5, -1.0, 2.0], [0.0, 1.0, -3.0], [9.0, 9.0, 9.0]]])
    loss = detector.classification_loss(logits, torch.tensor([[2, K, IGNORED]]))
    negatives = [0.5, -1.0, 0.0, 1.0, -3.0]
    expected = focal(2.0, True) + sum(focal(x, False) for x in negatives)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_focal_loss_without_focus_is_half_the_cross_entropy():
    detector = square_detector(8, focal_loss_alpha=0.5, focal_loss_gamma=0.0)
    logits, labels = torch.randn(2, 5, K), torch.randint(K + 1, (2, 5))
    expected = F.binary_cross_entropy_with_logits(
        logits, F.one_hot(labels, K + 1)[..., :K].float(), reduction="sum"
    )
    torch.testing.assert_close(detector.classification_loss(logits, labels), expected / 2)


@pytest.mark.parametrize("at_a_time", [1, 3, 1000])
def test_focal_loss_in_parts_is_that_of_the_whole(at_a_time, monkeypatch):
    monkeypatch.setattr("spatialflow.modeling.focal_loss.ANCHORS_AT_A_TIME", at_a_time)
    logits = torch.randn(2, 5, K, requires_grad=True)
    labels = torch.tensor([[IGNORED, 0, K, 1, K], [K, IGNORED, K, 2, 0]])
    loss = square_detector(8).classification_loss(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    counted = labels != IGNORED
    one_hot = F.one_hot(labels[counted], K + 1)[:, :K].float()
    expected = sigmoid_focal_loss(logits[counted], one_hot, 0.25, 2.0, reduction="sum")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])
    assert not gradient[labels == IGNORED].any()


def losses(detector, labels, boxes, logits=None, deltas=None):
    """Losses with one level of eight-pixel anchors in a row."""
    labels = torch.tensor(labels)
    n, r = labels.shape
    anchors = [Boxes(torch.tensor([[8.0 * i, 0, 8 * i + 8, 8] for i in range(r)]))]
    predictions = DensePredictions(
        [torch.zeros(n, r, K, requires_grad=True) if logits is None else logits],
        [torch.zeros(n, r, 4, requires_grad=True) if deltas is None else deltas],
    )
    boxes = [torch.tensor(b, dtype=torch.float32).reshape(r, 4) for b in boxes]
    found = detector.losses(predictions, anchors, AnchorTargets(labels, boxes))
    return found, predictions


def test_box_loss_is_l1_on_the_deltas_of_positives():
    boxes = [[[2.0, 1, 10, 9], [8, 0, 24, 8], [0, 0, 1, 1]]]
    found, _ = losses(tiny_detector(), [[1, 0, K]], boxes)
    # Deltas (2/8, 1/8, 0, 0) and (4/8, 0, log 2, 0); two positives.
    expected = (0.25 + 0.125 + 0.5 + math.log(2)) / 2
    assert found["loss_box_reg"].item() == pytest.approx(expected)


def test_smooth_l1_is_a_switch():
    found, _ = losses(tiny_detector(smooth_l1_beta=1.0), [[1]], [[[2.0, 0, 10, 8]]])
    assert found["loss_box_reg"].item() == pytest.approx(0.5 * 0.25**2)


def test_normaliser_counts_at_least_one_positive_an_image():
    boxes = [[[0.0, 0, 8, 8]] * 3] * 3
    labels = [[1, 0, 2], [K, K, K], [IGNORED, IGNORED, 1]]
    found, predictions = losses(tiny_detector(), labels, boxes)
    total = tiny_detector().classification_loss(predictions.logits[0], torch.tensor(labels))
    torch.testing.assert_close(found["loss_cls"], total / (3 + 1 + 1))


@pytest.mark.parametrize("label", [K, IGNORED])
def test_losses_without_positives_are_finite_and_have_gradients(label):
    found, predictions = losses(tiny_detector(), [[label] * 2], [[[0.0] * 4] * 2])
    assert found["loss_box_reg"] == 0
    assert found["loss_cls"] >= 0
    sum(found.values()).backward()
    assert predictions.deltas[0].grad.count_nonzero() == 0
    assert predictions.logits[0].grad.isfinite().all()


def test_heads_start_at_the_prior():
    detector = tiny_detector(prior_prob=0.02)
    predictions = detector([torch.zeros(1, CHANNELS, 3, 2)] * 2, [torch.zeros(1, CHANNELS, 3, 2)])
    torch.testing.assert_close(predictions.logits[0].sigmoid(), torch.full((1, 3 * 2 * 9, K), 0.02))
    assert [x.shape for x in predictions.deltas] == [(1, 54, 4)]


def test_decode_is_held_on_both_sides():
    detector = tiny_detector()
    anchor = torch.tensor([[0.0, 0, 10, 10]])
    large = detector.decode(torch.tensor([[0.0, 0, 99, 99]]), anchor)
    small = detector.decode(torch.tensor([[0.0, 0, -99, -99]]), anchor)
    torch.testing.assert_close(large[0, 2:] - large[0, :2], torch.full((2,), 10 * 1000 / 16))
    torch.testing.assert_close(small[0, 2:] - small[0, :2], torch.full((2,), 10 * 16 / 1000))
    shifted = detector.decode(torch.tensor([[-50.0, 0.5, math.log(2), 0]]), anchor)
    torch.testing.assert_close(shifted, torch.tensor([[-505.0, 5, -485, 15]]))


def test_decode_inverts_the_deltas_of_the_loss():
    detector = tiny_detector()
    corners = torch.rand(20, 2, 2) * 50
    anchors, boxes = (torch.cat([c, c + 5 + 20 * torch.rand(20, 2)], 1) for c in corners.unbind(1))
    deltas = detector.box2box_transform.get_deltas(anchors, boxes)
    torch.testing.assert_close(detector.decode(deltas, anchors), boxes, rtol=1e-4, atol=1e-4)


def detect(detector, levels, image_size=(100, 200), output_size=None):
    """Detections of one image from (boxes, scores (n, K)) of each level."""
    predictions = DensePredictions(
        [torch.tensor(scores).logit(eps=1e-9)[None] for _, scores in levels],
        [torch.zeros(1, len(boxes), 4) for boxes, _ in levels],
    )
    anchors = [Boxes(torch.tensor(boxes, dtype=torch.float32)) for boxes, _ in levels]
    (found,) = detector.inference(predictions, anchors, [image_size], [output_size or image_size])
    return found


def listed(found: Instances):
    return [
        (c, round(s, 4), b)
        for c, s, b in zip(
            found.pred_classes.tolist(),
            found.scores.tolist(),
            found.pred_boxes.tensor.tolist(),
            strict=True,
        )
    ]


A, A_SHIFTED, FAR = [0, 0, 40, 40], [0, 10, 40, 50], [100, 50, 140, 90]


def test_nms_is_for_each_class_and_over_levels():
    levels = [
        ([A, FAR], [[0.9, 0.0, 0.0], [0.0, 0.0, 0.3]]),
        ([A_SHIFTED, A_SHIFTED], [[0.8, 0.0, 0.0], [0.0, 0.7, 0.0]]),
    ]
    found = detect(tiny_detector(), levels)
    assert listed(found) == [(0, 0.9, A), (1, 0.7, A_SHIFTED), (2, 0.3, FAR)]


def test_one_box_may_have_several_classes():
    found = detect(tiny_detector(), [([A], [[0.9, 0.5, 0.04]])])
    assert listed(found) == [(0, 0.9, A), (1, 0.5, A)]


@pytest.mark.parametrize(("thresh", "left"), [(0.59, 1), (0.61, 2)])
def test_nms_threshold(thresh, left):
    """The boxes' IoU is 30 / 50."""
    levels = [([A, A_SHIFTED], [[0.9, 0.0, 0.0], [0.8, 0.0, 0.0]])]
    assert len(detect(tiny_detector(nms_thresh=thresh), levels)) == left


def test_each_level_gives_its_best_anchors_with_all_their_classes():
    levels = [
        ([A, FAR], [[0.9, 0.6, 0.0], [0.8, 0.0, 0.0]]),
        ([[0, 60, 20, 80], [30, 60, 50, 80]], [[0.1, 0.0, 0.0], [0.0, 0.0, 0.2]]),
    ]
    found = detect(tiny_detector(topk_candidates=1), levels)
    assert [(c, s) for c, s, _ in listed(found)] == [(0, 0.9), (1, 0.6), (2, 0.2)]


def test_the_best_detections_are_kept():
    boxes = [[10 * i, 0, 10 * i + 9, 9] for i in range(8)]
    scores = [[0.1 * (i + 1), 0.0, 0.0] for i in range(8)]
    found = detect(tiny_detector(max_detections=3), [(boxes, scores)])
    assert [round(s, 3) for s in found.scores.tolist()] == [0.8, 0.7, 0.6]


def test_boxes_are_clipped_to_the_image_then_scaled_to_the_output():
    found = detect(tiny_detector(), [([[-20, 10, 300, 50]], [[0.9, 0, 0]])], output_size=(200, 100))
    assert found.image_size == (200, 100)
    assert listed(found) == [(0, 0.9, [0, 20, 100, 100])]


def test_box_outside_the_image_is_no_detection():
    assert len(detect(tiny_detector(), [([[-20, 10, -5, 50]], [[0.9, 0, 0]])])) == 0


def test_no_detections():
    found = detect(tiny_detector(), [([A], [[0.01, 0.02, 0.049]]), ([FAR], [[0.0, 0.0, 0.0]])])
    assert len(found) == 0
    assert found.pred_boxes.tensor.shape == (0, 4)
    assert found.pred_classes.dtype == torch.int64


def test_predictions_that_are_not_finite_are_no_detections():
    """A diverging training ends in a loss that says so."""
    predictions = DensePredictions(
        [torch.tensor([[[3.0, 0, 0], [math.nan] * 3, [2.0, -9, -9]]])],
        [torch.tensor([[[math.nan] * 4, [0.0] * 4, [0.0] * 4]])],
    )
    anchors = [Boxes(torch.tensor([A, A, FAR], dtype=torch.float32))]
    (found,) = tiny_detector().inference(predictions, anchors, [(100, 200)], [(100, 200)])
    np.testing.assert_array_equal(found.pred_boxes.tensor, [FAR])


def test_images_of_a_batch_keep_apart():
    predictions = DensePredictions(
        [torch.tensor([[[2.0, -9, -9], [-9, -9, -9]], [[-9, -9, -9], [-9, 1.0, -9]]])],
        [torch.zeros(2, 2, 4)],
    )
    anchors = [Boxes(torch.tensor([A, FAR], dtype=torch.float32))]
    first, second = tiny_detector().inference(
        predictions, anchors, [(100, 200), (50, 100)], [(100, 200), (100, 200)]
    )
    assert first.pred_boxes.tensor.tolist() == [A]
    assert len(second) == 0  # outside the smaller image
