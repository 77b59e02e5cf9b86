"""Convolutions that read one feature as one give what they give apart."""

import itertools

import pytest
import torch
from builders import CHANNELS, FLOWS, randomize, tiny_subnets
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from spatialflow.inference.optimized import fold_batch_norms
from spatialflow.modeling.flows import AttentionFlow, ConvFlow, Flow
from spatialflow.modeling.fused_subnets import FusedSubnetworks
from spatialflow.modeling.wiring import TASKS

FROM_CLS = ("cls_reg", "cls_stuff", "cls_thing", "stuff_thing")
BATCH_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def case_name(kwargs):
    """The same in every process: functions by their names."""
    return str({k: getattr(v, "__qualname__", v) for k, v in kwargs.items()})


def mixed_flows():
    """Makes convolutions and attention in turn."""
    types = itertools.cycle([AttentionFlow, ConvFlow])
    return lambda *channels: next(types)(*channels)


def pyramid(finest=16):
    sides = [side for side in (32, 16, 8, 4, 2, 1) if side <= finest]
    return [torch.randn(2, CHANNELS, side, side + 1) for side in sides]


@pytest.mark.parametrize("finest", [16, 32], ids=["P3", "P2"])
@pytest.mark.parametrize(
    "kwargs",
    [
        *({"flows": [f for f in FLOWS if f != left_out]} for left_out in FLOWS),
        {"flows": FLOWS},
        {"flows": FROM_CLS},
        {"flows": FLOWS, "deform_on": ("cls", "stuff", "thing")},
        {"flows": FLOWS, "deform_on": ("stuff",)},
        {"flows": FLOWS, "tasks": ("cls", "reg", "thing")},
        {"flows": ()},
        {"flows": ("stuff_thing",)},
        {"flows": FROM_CLS, "deform_on": ("cls",)},
        {"flows": ("reg_cls", "reg_stuff", "stuff_cls", "thing_cls")},
        {"flows": ("stuff_reg", "thing_reg", "stuff_cls")},
        {"flows": FLOWS, "flow_type": AttentionFlow},
        {"flows": FLOWS, "flow_type": mixed_flows()},
        {"flows": FROM_CLS, "flow_type": mixed_flows(), "deform_on": ("stuff",)},
        *(
            {"flows": FLOWS, "stages": dict(zip(TASKS, stages, strict=True))}
            for stages in itertools.product((0, 2), (1, 4), (0, 3), (0, 2))
        ),
    ],
    ids=case_name,
)
@torch.no_grad()
def test_fused_flows(kwargs, finest):
    subnets, features = tiny_subnets(**kwargs), pyramid(finest)
    expected = subnets(features)
    found = FusedSubnetworks(subnets)(features)
    for a, b in zip(found, expected, strict=True):
        for a_i, b_i in zip(a, b, strict=True):
            torch.testing.assert_close(a_i, b_i)


def wide(*args, **kwargs):
    """Of the fused sub-networks: how many convolutions each feature has in one."""
    fused = FusedSubnetworks(tiny_subnets(*args, **kwargs))
    return {name: conv.out_channels // CHANNELS for name, conv in fused.wide.items()}


def test_convolutions_that_read_one_feature_are_one():
    assert wide() == {"reg_1": 3, "reg_2": 3, "reg_3": 3, "reg_4": 3}
    assert wide(FROM_CLS) == {"cls_1": 3, "cls_2": 3, "cls_3": 3, "cls_4": 3}
    assert wide(()) == {"p": 4}
    assert wide(deform_on=("stuff",)) == {"reg_1": 2, "reg_2": 2, "reg_3": 2, "reg_4": 2}
    assert wide(stages={"reg": 2}) == {"p": 5, "reg_1": 3, "reg_2": 3}
    assert wide(flow_type=AttentionFlow) == {}


def test_flows_that_are_not_fused_keep_their_weights():
    fused = FusedSubnetworks(tiny_subnets(flow_type=mixed_flows()))
    flows = {k: x for k, x in fused.subnets.named_modules() if isinstance(x, Flow)}
    kept = {name for name, module in flows.items() if list(module.parameters())}
    attention = {f"{task}.{j}.flows.reg" for task in ("cls", "stuff") for j in (0, 2)}
    assert kept == attention | {"thing.0.flows.reg", "thing.0.flows.stuff"}
    assert {name: x.out_channels // CHANNELS for name, x in fused.wide.items()} == {
        "reg_2": 3,
        "reg_4": 2,
    }


@pytest.mark.parametrize("deform_on", [(), ("cls", "stuff", "thing")], ids=["plain", "dcn"])
@pytest.mark.parametrize("norm", ["GN", "BN", "FrozenBN", ""])
@torch.no_grad()
def test_norms_of_the_stages(norm, deform_on):
    torch.manual_seed(0)
    subnets = tiny_subnets(channels=32, norm=norm, deform_on=deform_on).eval().double()
    for module in list(subnets.modules()):
        if isinstance(module, BATCH_NORMS):
            randomize(module)
    features = [torch.randn(2, 32, side, side + 1).double() for side in (16, 8, 4, 2, 1)]
    expected = subnets(features)
    fold_batch_norms(subnets)
    found = FusedSubnetworks(subnets)(features)
    kept = [x for x in subnets.modules() if isinstance(x, nn.GroupNorm)]
    assert len(kept) == (13 if norm == "GN" else 0)
    assert not any(isinstance(x, BATCH_NORMS) for x in subnets.modules())
    for a, b in zip(found, expected, strict=True):
        for a_i, b_i in zip(a, b, strict=True):
            torch.testing.assert_close(a_i, b_i)
