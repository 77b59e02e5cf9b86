"""The norm layers of this project's own convolutions."""

import pytest
import torch
from detectron2.layers import get_norm as detectron2_norm
from torch import nn

from spatialflow.modeling.layers import conv3x3
from spatialflow.modeling.norms import get_norm


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_norm_is_detectron2s_with_its_gradients(memory_format):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = get_norm("LN", 6), detectron2_norm("LN", 6)
    state = {name: torch.randn(6, generator=generator) for name in ("weight", "bias")}
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = 3 + 5 * torch.randn(2, 6, 4, 5, generator=generator)
    grad = torch.randn(x.shape, generator=generator)
    results = []
    for norm in (ours, theirs):
        leaf = x.to(memory_format=memory_format).requires_grad_()
        y = norm(leaf)
        y.backward(grad)
        results.append([y, leaf.grad, norm.weight.grad, norm.bias.grad])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_norm_keeps_the_layout_of_its_input(memory_format):
    x = torch.randn(2, 6, 4, 5).to(memory_format=memory_format)
    assert get_norm("LN", 6)(x).stride() == x.stride()


def test_convolutions_have_one_operation_for_layer_norm():
    with torch.profiler.profile() as profiler:
        conv3x3(8, 8, "LN")(torch.randn(1, 8, 4, 4))
    names = [event.key for event in profiler.key_averages()]
    assert "aten::native_layer_norm" in names
    assert "aten::sqrt" not in names


@pytest.mark.parametrize(
    ("norm", "kind"), [("", type(None)), ("GN", nn.GroupNorm), ("BN", nn.BatchNorm2d)]
)
def test_other_norms_are_detectron2s(norm, kind):
    assert isinstance(get_norm(norm, 32), kind)
