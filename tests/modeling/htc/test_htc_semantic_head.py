"""HTC's semantic branch: sizes, the loss, what is built."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from spatialflow.modeling.htc import FusedSemanticHead

SHAPES = {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in range(2, 7)}
LABELS, VOID = 4, 255


def make_head(**kwargs) -> FusedSemanticHead:
    arguments = {
        "input_shape": SHAPES,
        "num_classes": LABELS,
        "conv_dim": 24,
        "common_stride": 8,
        "norm": "",
        "loss_weight": 0.2,
        "ignore_value": VOID,
        "with_embedding": True,
    }
    torch.manual_seed(0)
    return FusedSemanticHead(**{**arguments, **kwargs})


def pyramid(height=64, width=96):
    torch.manual_seed(1)
    return {
        name: torch.randn(2, 16, -(-height // s.stride), -(-width // s.stride))
        for name, s in SHAPES.items()
    }


def test_sizes():
    head = make_head()
    outputs = head(pyramid())
    assert outputs.scores.shape == (2, LABELS, 8, 12)
    assert outputs.embedding.shape == (2, 16, 8, 12) and outputs.embedding.min() >= 0
    assert head.upsample(outputs.scores).shape == (2, LABELS, 64, 96)


def test_levels_are_summed_at_the_common_stride():
    head, levels = make_head(), pyramid()
    fused = 0
    for name, level in levels.items():
        resized = F.interpolate(level, (8, 12), mode="bilinear", align_corners=True)
        fused = fused + head.lateral_convs[name](resized)
    torch.testing.assert_close(head(levels).scores, head.predictor(head.convs(fused)))


def test_every_level_is_read():
    head, levels = make_head(), pyramid()
    expected = head(levels).scores
    for name in levels:
        assert not torch.equal(head({**levels, name: levels[name] + 1}).scores, expected)


def test_loss_is_the_mean_over_cells_with_a_label():
    head = make_head()
    scores = torch.randn(2, LABELS, 8, 12)
    targets = torch.randint(LABELS, (2, 64, 96))
    targets[:, :20] = VOID
    middle = targets[:, 4::8, 4::8]
    expected = 0.2 * F.cross_entropy(scores, middle, ignore_index=VOID)
    torch.testing.assert_close(head.losses(scores, targets)["loss_sem_seg"], expected)


def test_loss_of_void_alone_is_zero():
    targets = torch.full((2, 64, 96), VOID)
    scores = torch.randn(2, LABELS, 8, 12, requires_grad=True)
    loss = make_head().losses(scores, targets)["loss_sem_seg"]
    loss.backward()
    assert loss == 0 and not scores.grad.any()


def test_without_a_reader_there_is_no_embedding():
    head = make_head(with_embedding=False)
    assert head(pyramid()).embedding is None
    assert not any(name.startswith("embedding") for name, _ in head.named_parameters())


def test_a_stride_without_a_level_is_refused():
    with pytest.raises(ValueError, match=r"COMMON_STRIDE is 6, .* strides \[4, 8, 16, 32, 64\]"):
        make_head(common_stride=6)


def test_norm_stands_for_the_bias():
    head = make_head(
        norm="GN",
        conv_dim=32,
        input_shape={name: ShapeSpec(channels=32, stride=s.stride) for name, s in SHAPES.items()},
    )
    assert all(conv.bias is None and conv.norm is not None for conv in head.convs)
    assert head.predictor.bias is not None and head.predictor.norm is None
