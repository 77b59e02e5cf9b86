"""Modulated deformable convolution against its definition written as loops."""

import itertools

import pytest
import torch

from spatialflow.modeling.deform_conv import DeformConv, ModulatedDeformConv


def sample(image, y, x):
    """Bilinear interpolation of (H, W) at a point, zero outside."""
    value, (height, width) = 0.0, image.shape
    y0, x0 = int(y // 1), int(x // 1)
    for row, column in itertools.product((y0, y0 + 1), (x0, x0 + 1)):
        if 0 <= row < height and 0 <= column < width:
            value += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column].item()
    return value


def by_definition(conv, x, offsets, groups, stride=1):
    """The sum over the kernel's points of weight * modulation * (sample at point + offset)."""
    points = list(itertools.product(range(3), range(3)))
    k = len(points) * groups
    out = torch.zeros(len(x), conv.out_channels, *offsets.shape[-2:])
    for n, o, i, j in itertools.product(*map(range, out.shape)):
        value = conv.bias[o].item()
        for c in range(conv.in_channels):
            first = (c // (conv.in_channels // groups)) * len(points)
            for p, (row, column) in enumerate(points, start=first):
                dy, dx = offsets[n, 2 * p : 2 * p + 2, i, j].tolist()
                y, x_ = i * stride - 1 + row + dy, j * stride - 1 + column + dx
                weight = conv.weight[o, c, row, column].item()
                if isinstance(conv, ModulatedDeformConv):
                    weight *= offsets[n, 2 * k + p, i, j].sigmoid().item()
                value += weight * sample(x[n, c], y, x_)
        out[n, o, i, j] = value
    return out


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [DeformConv, ModulatedDeformConv])
def test_equals_its_definition(kind, groups):
    conv = kind(4, 2, 3, padding=1, deformable_groups=groups)
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 4, 4, 5)
    offsets = torch.randn(2, conv.num_offset_channels, 4, 5)
    assert conv.num_offset_channels == groups * (18 if kind is DeformConv else 27)
    expected = by_definition(conv, x, offsets, groups)
    torch.testing.assert_close(conv(x, offsets), expected, rtol=1e-4, atol=1e-5)


def test_stride():
    conv = ModulatedDeformConv(2, 2, 3, padding=1, stride=2)
    x, offsets = torch.randn(1, 2, 5, 6), torch.randn(1, 27, 3, 3)
    expected = by_definition(conv, x, offsets, 1, stride=2)
    torch.testing.assert_close(conv(x, offsets), expected, rtol=1e-4, atol=1e-5)


def test_bias_starts_at_zero():
    assert not ModulatedDeformConv(2, 2, 3).bias.any()
    assert ModulatedDeformConv(2, 2, 3, bias=False).bias is None


def test_gradients_reach_features_offsets_and_weights():
    conv = ModulatedDeformConv(1, 1, 3, padding=1).double()
    x = torch.randn(1, 1, 3, 4, dtype=torch.double, requires_grad=True)
    # Between pixels: bilinear interpolation has no derivative on them.
    offsets = 0.5 + 0.3 * torch.rand(1, 27, 3, 4, dtype=torch.double)

    def run(x, offsets, weight):
        parameters = {"weight": weight, "bias": conv.bias}
        return torch.func.functional_call(conv, parameters, (x, offsets))

    inputs = (x, offsets.requires_grad_(), conv.weight.detach().requires_grad_())
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_offset_that_is_not_finite_samples_nothing(value):
    conv = DeformConv(2, 3, 3, padding=1)
    x = torch.randn(1, 2, 5, 5)
    offsets = torch.zeros(1, 18, 5, 5)
    offsets[0, ::2] = value  # every point, in y
    offsets.requires_grad_()
    y = conv(x, offsets)
    torch.testing.assert_close(y, conv.bias.view(1, -1, 1, 1).expand_as(y))
    y.sum().backward()
