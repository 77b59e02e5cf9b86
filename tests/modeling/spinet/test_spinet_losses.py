"""Equations (1) to (6) against references of a few lines."""

import pytest
import torch
import torch.nn.functional as F

from spatialflow.modeling.spinet.auxiliary import InterClassContours, IntraClassTriplets, class_map
from spatialflow.modeling.spinet.losses import (
    IGNORED_CLASS,
    contour_target,
    dice_loss,
    hardest_cross_entropy,
    multi_class_dice_loss,
    triplet_loss,
)
from spatialflow.modeling.spinet.targets import ImageTargets

VOID = 255


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_dice_of_masks():
    p, y = torch.rand(3, 4, 5), torch.rand(3, 4, 5) > 0.5
    for loss, a, b in zip(dice_loss(p, y), p, y.float(), strict=True):
        expected = 1 - 2 * (a * b).sum() / ((a**2).sum() + (b**2).sum())
        torch.testing.assert_close(loss, expected)
    assert dice_loss(y.float(), y).max() < 1e-5
    assert dice_loss(p[:0], y[:0]).shape == (0,)


def test_multi_class_dice_is_the_mean_of_that_of_each_label():
    scores, labels = torch.randn(4, 6, 5), torch.randint(3, (6, 5))
    labels[0] = VOID
    p, seen = scores.softmax(0), labels != VOID
    each = [dice_loss((p[i] * seen)[None], (labels == i)[None]) for i in range(4)]
    assert multi_class_dice_loss(scores, labels, VOID) == pytest.approx(sum(each).item() / 4, 1e-5)


def test_an_absent_label_has_loss_1_and_no_gradient_of_its_own():
    p, absent = torch.rand(1, 4, 4, requires_grad=True), torch.zeros(1, 4, 4)
    loss = dice_loss(p, absent)
    assert loss.item() == 1
    loss.sum().backward()
    assert not p.grad.any()


def test_cross_entropy_of_the_hardest_pixels():
    scores, labels = torch.randn(4, 10, 10), torch.randint(4, (10, 10))
    labels[:5] = VOID
    loss, count = hardest_cross_entropy(scores, labels, VOID, 1.0)
    plain = F.cross_entropy(scores[None], labels[None], ignore_index=VOID)
    assert count == 50 and loss / count == pytest.approx(plain.item(), 1e-5)
    each = F.cross_entropy(scores[:, 5:].flatten(1).T, labels[5:].flatten(), reduction="none")
    loss, count = hardest_cross_entropy(scores, labels, VOID, 0.2)
    assert count == 10 and loss == pytest.approx(each.sort().values[-10:].sum().item(), 1e-5)
    loss, count = hardest_cross_entropy(scores, torch.full_like(labels, VOID), VOID, 0.2)
    assert count == 0 and loss == 0


def test_triplet_loss():
    a, p, n = torch.randn(3, 7, 16)
    dp, dn = -(a - p).norm(dim=1), -(a - n).norm(dim=1)
    expected = -(dp.exp() / (dp.exp() + dn.exp())).log()
    torch.testing.assert_close(triplet_loss(a, p, n), expected, rtol=1e-4, atol=1e-5)


def test_triplets_of_equal_points_have_finite_gradients():
    a = torch.ones(2, 4, requires_grad=True)
    triplet_loss(a, a, a).sum().backward()
    assert a.grad.isfinite().all()


def test_contours_are_where_classes_meet_and_not_at_void():
    classes = torch.zeros(8, 10, dtype=torch.int64)
    classes[:, 5:] = 3
    classes[:2] = IGNORED_CLASS
    on = torch.zeros(8, 10)
    on[2:, 4:6] = 1
    expected = F.avg_pool2d(on[None], 3, 1, 1, count_include_pad=False)[0]
    torch.testing.assert_close(contour_target(classes), expected)


def scene(*classes, size=32):
    """Things of 16x8 pixels side by side on stuff, with a void row below."""
    masks = torch.zeros(len(classes), size, size, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[:16, 8 * i : 8 * i + 8] = True
    stuff = torch.ones(size, size, dtype=torch.int64)
    stuff[masks.any(0)] = 0
    stuff[-1] = VOID
    ignored = stuff == VOID
    return ImageTargets(masks, torch.tensor(classes, dtype=torch.int64), stuff, ignored)


def test_class_map_separates_things_by_class():
    numbers = class_map(scene(2, 2, 0))
    assert numbers[0].unique().numel() == 3  # class 2, class 0, stuff
    assert numbers[0, 0] == numbers[0, 8] != numbers[0, 16]
    assert (numbers[-1] == IGNORED_CLASS).all()


@pytest.mark.parametrize(("same_class", "count"), [(True, 2), (False, 6)])
def test_triplets_are_pairs_of_things(same_class, count):
    task = IntraClassTriplets(8, same_class)
    triplets = task._triplets(torch.randn(8, 8, 8), scene(2, 2, 0))
    assert [x.shape for x in triplets] == [(count, 8)] * 3
    # A lone thing makes none, nor does one of a single cell.
    assert len(task._triplets(torch.randn(8, 8, 8), scene(2))[0]) == 0
    image = scene(2, 2)
    image.masks[0] = False
    image.masks[0, :4, :4] = True
    assert len(task._triplets(torch.randn(8, 8, 8), image)[0]) == 0


def test_triplets_have_the_mean_of_each_half(monkeypatch):
    half = torch.tensor([[0.0, 1.0] * 4] * 8)  # the even columns are the first half
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: half)
    task, feature = IntraClassTriplets(8, True), torch.randn(8, 8, 8)
    anchors, positives, negatives = task._triplets(feature, scene(1, 1))
    expected = [task.projection(feature[:, :4, i].mean(1)) for i in range(4)]
    torch.testing.assert_close(anchors, torch.stack([expected[0], expected[2]]))
    torch.testing.assert_close(positives, torch.stack([expected[1], expected[3]]))
    torch.testing.assert_close(negatives, torch.stack([expected[2], expected[0]]))


def test_contour_loss_is_the_mean_focal_loss():
    task, feature, image = InterClassContours(8, 0.25, 2.0), torch.randn(1, 8, 8, 8), scene(2, 0)
    x = F.pixel_shuffle(task.contour(feature), 4)[0, 0]
    y, p = contour_target(class_map(image)), x.sigmoid()
    right = p * y + (1 - p) * (1 - y)
    entropy = F.binary_cross_entropy(p, y, reduction="none")
    focal = (0.25 * y + 0.75 * (1 - y)) * (1 - right) ** 2 * entropy
    torch.testing.assert_close(task(feature, [image]), focal[~image.ignored].mean())
