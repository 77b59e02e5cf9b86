"""The stuff head against its description, its loss, and how scores are resized."""

import cv2
import pytest
import torch
import torch.nn.functional as F
from builders import CHANNELS, STUFF_LABELS, tiny_stuff_head
from torch import nn

from spatialflow.modeling import stuff_head
from spatialflow.modeling.stuff_head import stuff_loss


def features(height=64, width=96):
    return [torch.randn(2, CHANNELS, height // s, width // s) for s in (8, 16, 32)]


def by_description(head, levels, align_corners):
    """Sec. III-A, Fig. 3b: 1, 2 and 3 blocks of conv, GN, ReLU, 2x; sum; 1x1 conv; 4x."""

    def up(x, factor):
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=align_corners)

    total = 0
    for n, (name, x) in enumerate(zip(("p3", "p4", "p5"), levels, strict=True), start=1):
        convs = [m for m in getattr(head, name).modules() if isinstance(m, nn.Conv2d)]
        assert len(convs) == n
        for conv in convs:
            x = F.group_norm(
                F.conv2d(x, conv.weight, padding=1), 32, conv.norm.weight, conv.norm.bias, 1e-5
            )
            x = up(x.relu(), 2)
        total = total + x
    return up(F.conv2d(total, head.predictor.weight, head.predictor.bias), 4)


@pytest.mark.parametrize("align_corners", [False, True])
def test_head_follows_its_description(align_corners):
    head, levels = tiny_stuff_head(align_corners=align_corners), features()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    scores = head(levels)
    assert scores.shape == (2, STUFF_LABELS, 64, 96)
    torch.testing.assert_close(
        scores, by_description(head, levels, align_corners), rtol=1e-4, atol=1e-4
    )


def test_loss_is_lambda_times_the_mean_over_labelled_pixels():
    head, levels = tiny_stuff_head(loss_weight=0.3), features()
    targets = torch.randint(STUFF_LABELS, (2, 64, 96))
    targets[0, :40] = 255
    loss = head.losses(levels, targets)["loss_sem_seg"]
    labelled = targets != 255
    log_p = head(levels).log_softmax(dim=1).permute(0, 2, 3, 1)[labelled]
    expected = -0.3 * log_p.gather(1, targets[labelled][:, None]).mean()
    torch.testing.assert_close(loss, expected)


def test_stuff_loss_by_hand():
    scores = torch.zeros(1, 2, 1, 3)
    loss = stuff_loss(scores, torch.tensor([[[0, 255, 1]]]), ignore_value=255)
    assert loss.item() == pytest.approx(2 * 0.6931472)


def test_hard_pixels_are_the_worst_of_each_image():
    head, levels = tiny_stuff_head(hard_pixels=0.25, loss_weight=0.5), features()
    targets = torch.randint(STUFF_LABELS, (2, 64, 96))
    targets[0, 1:] = 255  # 96 labelled pixels: 24 count; of the other image 1536
    loss = head.losses(levels, targets)["loss_sem_seg"]
    log_p = head(levels).log_softmax(dim=1)
    worst = []
    for image, target in zip(log_p, targets, strict=True):
        there = target != 255
        of_label = -image.permute(1, 2, 0)[there].gather(1, target[there][:, None])[:, 0]
        worst.append(of_label.sort(descending=True).values[: len(of_label) // 4])
    assert [len(x) for x in worst] == [24, 1536]
    torch.testing.assert_close(loss, 0.5 * torch.cat(worst).mean())
    nothing = head.losses(levels, torch.full_like(targets, 255))["loss_sem_seg"]
    assert nothing == 0 and nothing.requires_grad


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="LOSS_TOP_K"):
        tiny_stuff_head(hard_pixels=share)


def test_image_without_labels_gives_a_loss_of_zero_and_gradients_of_zero():
    head = tiny_stuff_head()
    loss = head.losses(features(), torch.full((2, 64, 96), 255))["loss_sem_seg"]
    assert loss == 0
    loss.backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_scores_are_cut_to_the_image_and_resized():
    head, scores = tiny_stuff_head(), torch.randn(STUFF_LABELS, 64, 96)
    found = head.postprocess(scores, (50, 70), (75, 105))
    expected = F.interpolate(scores[None, :, :50, :70], (75, 105), mode="bilinear")[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("resize", ["bilinear", "nearest"])
def test_image_at_its_own_size_is_only_cut(resize):
    head, scores = tiny_stuff_head(resize=resize), torch.randn(STUFF_LABELS, 64, 96)
    assert torch.equal(head.postprocess(scores, (50, 70), (50, 70)), scores[:, :50, :70])


def test_nearest_is_resizing_the_label_map():
    head, scores = tiny_stuff_head(resize="nearest"), torch.randn(STUFF_LABELS, 64, 96)
    labels = head.postprocess(scores, (50, 70), (100, 35)).argmax(dim=0)
    small = scores[:, :50, :70].argmax(dim=0)
    assert torch.equal(labels, small.repeat_interleave(2, dim=0)[:, ::2])


@pytest.mark.parametrize(("side", "output_side"), [(750, 360), (800, 224), (1029, 675), (30, 90)])
def test_nearest_takes_the_rows_that_opencv_takes(side, output_side):
    rows = torch.arange(side, dtype=torch.float32)
    ours = tiny_stuff_head(resize="nearest").postprocess(
        rows.expand(2, 1, side), (1, side), (1, output_side)
    )
    theirs = cv2.resize(rows[None].numpy(), (output_side, 1), interpolation=cv2.INTER_NEAREST)
    assert (ours.numpy() == theirs).all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("resize", [{}, {"align_corners": True}, {"resize": "nearest"}], ids=str)
@pytest.mark.parametrize("size", [(75, 105), (31, 40), (50, 70)])
@pytest.mark.parametrize("labels_at_a_time", [1, 2, 5])
def test_labels_are_the_most_likely_ones(
    monkeypatch, channels_last, resize, size, labels_at_a_time
):
    monkeypatch.setattr(stuff_head, "SCORES_AT_A_TIME", labels_at_a_time * size[0] * size[1])
    torch.manual_seed(0)
    scores = torch.randn(1, STUFF_LABELS, 64, 96).round()  # many are equal: the first one wins
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    (scores,) = scores.contiguous(memory_format=memory_format)
    head, resized = tiny_stuff_head(**resize), []
    postprocess = head.postprocess
    head.postprocess = lambda *args: resized.append(postprocess(*args)) or resized[-1]
    labels = head.postprocess_labels(scores, (50, 70), size)
    assert [len(x) for x in resized] == {1: [1] * 5, 2: [2, 2, 1], 5: [5]}[labels_at_a_time]
    assert labels.dtype == torch.int64
    assert torch.equal(labels, postprocess(scores, (50, 70), size).max(dim=0).indices)


def test_unknown_resize_is_named():
    with pytest.raises(ValueError, match="MODEL.SPATIALFLOW.STUFF_RESIZE is 'cubic'; give"):
        tiny_stuff_head(resize="cubic")
