"""The modules that a flow can be."""

import pytest
import torch
import torch.nn.functional as F
from builders import make_input, tiny_model, tiny_subnets
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spatialflow.modeling.flows import (
    FLOW_REGISTRY,
    AttentionFlow,
    ConvFlow,
    Flow,
    PointwiseFlow,
    find_flow_type,
)

C = 16


def features(height=6, width=5, channels=C):
    return torch.randn(2, channels, height, width), torch.randn(2, channels, height, width)


def multiply_adds(flow, height, width):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        flow(*(x[:1] for x in features(height, width, flow.channels)))
    return counter.get_total_flops() // 2


def test_types_by_name():
    assert find_flow_type("ConvFlow") is ConvFlow
    assert find_flow_type("PointwiseFlow") is PointwiseFlow
    assert find_flow_type("AttentionFlow") is AttentionFlow


def test_unknown_type_is_named():
    with pytest.raises(ValueError, match="no flow 'attention' in FLOW_REGISTRY; choose among Att"):
        find_flow_type("attention")


class Gate(Flow):
    """A flow of somebody else."""

    def __init__(self, channels, out_channels):
        super().__init__(channels, out_channels)
        self.gate = nn.Conv2d(channels, out_channels, 1)

    def forward(self, source, target):
        return source * self.gate(target).sigmoid()


def test_own_flow_needs_nothing_but_its_registration(monkeypatch):
    monkeypatch.setattr(FLOW_REGISTRY, "_obj_map", dict(FLOW_REGISTRY))
    FLOW_REGISTRY.register(Gate)
    net = tiny_subnets(flow_type=find_flow_type("Gate"), init="msra")
    p = torch.randn(1, C, 8, 8)
    (found,), (stage,) = net.forward_level(p, True), net.thing
    entered = [stage.flows[task](found[task], p) for task in ("reg", "stuff")]
    torch.testing.assert_close(found["thing"], F.relu(stage.conv(p + sum(entered))))


def test_own_flow_that_cannot_start_at_zero_is_named():
    with pytest.raises(NotImplementedError, match="Gate has no initialize.*FLOW_INIT"):
        tiny_subnets(flow_type=Gate, flow_init="zero")


@pytest.mark.parametrize("flow_type", [ConvFlow, PointwiseFlow, AttentionFlow])
def test_result_has_the_channels_asked_for(flow_type):
    assert flow_type(C, 27)(*features()).shape == (2, 27, 6, 5)


def test_convolution_takes_the_source_alone():
    flow = ConvFlow(C, C)
    source, target = features()
    expected = F.conv2d(source, flow.conv.weight, flow.conv.bias, padding=1)
    assert torch.equal(flow(source, target), expected)
    assert torch.equal(flow(source, 2 * target), expected)


def test_pointwise_flow_takes_each_cell_alone_for_a_ninth_of_the_cost():
    flow = PointwiseFlow(C, C)
    source, target = features()
    expected = torch.einsum("oi,nihw->nohw", flow.conv.weight[:, :, 0, 0], source)
    torch.testing.assert_close(flow(source, target), expected)
    assert 9 * multiply_adds(flow, 10, 8) == multiply_adds(ConvFlow(C, C), 10, 8)


@pytest.mark.parametrize("num_heads", [1, 4, 8, 3])
def test_attention_is_a_mean_over_the_cells_of_the_source(num_heads):
    """The matrix over all pairs of cells written out."""
    flow = AttentionFlow(C, C, num_heads)
    source, target = features()
    heads = [
        x.chunk(flow.num_heads, dim=1) for x in (flow.query(source + target), flow.key(source))
    ]
    values = flow.value(source).flatten(2).chunk(flow.num_heads, dim=1)
    attended = []
    for query, key, value in zip(*heads, values, strict=True):
        matrix = query.flatten(2).softmax(dim=1).transpose(1, 2) @ key.flatten(2).softmax(dim=2)
        torch.testing.assert_close(matrix.sum(dim=2), torch.ones(2, 30))
        attended.append((matrix @ value.transpose(1, 2)).transpose(1, 2))
    expected = flow.output(torch.cat(attended, dim=1).view_as(source))
    torch.testing.assert_close(flow(source, target), expected)


def test_attention_reaches_every_cell():
    flow = AttentionFlow(C, C)
    source, target = (x.requires_grad_() for x in features())
    grads = torch.autograd.grad(flow(source, target)[0, :, 0, 0].sum(), [source, target])
    assert grads[0][0].abs().amax(dim=0).min() > 0
    assert grads[1][0, :, 0, 0].any()
    assert not grads[1][0, :, 1:].any()


def test_attention_costs_half_a_convolution_and_grows_with_the_cells():
    conv, attention = ConvFlow(256, 256), AttentionFlow(256, 256)
    small, large = (multiply_adds(attention, 10, side) for side in (8, 16))
    assert large == 2 * small
    assert small / multiply_adds(conv, 10, 8) == pytest.approx(0.472, abs=0.001)


def test_model_with_attention_trains():
    model = tiny_model(flow_type=AttentionFlow)
    losses = model([make_input(boxes=[(8, 8, 40, 40)])])
    sum(losses.values()).backward()
    for name, parameter in model.subnets.named_parameters():
        # softmax does not depend on what is added to all of its inputs
        if not name.endswith("key.bias"):
            assert parameter.grad is not None and parameter.grad.any(), name
