"""The sub-networks against equations (3) and (4) written out again."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from builders import FLOWS, STAGES, tiny_subnets
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import deform_conv2d

from spatialflow.config import config_dir, load_config
from spatialflow.modeling.flows import AttentionFlow, ConvFlow, Flow, PointwiseFlow
from spatialflow.modeling.subnets import Subnetworks
from spatialflow.modeling.wiring import TASKS

C = 4
SUBSETS = [s for n in range(5) for s in itertools.combinations(FLOWS, n)]
CLS_FLOWS = ("cls_reg", "cls_stuff", "cls_thing", "stuff_thing")


def pyramid(channels=C):
    return [torch.randn(2, channels, 2 ** (4 - i) + 1, 2 ** (4 - i)) for i in range(5)]


def conv(module, x):
    return F.conv2d(x, module.weight, module.bias, padding=1)


def flow(stage, source, x):
    return conv(stage.flows[source].conv, x)


def equation_3(net, p, flows, stages, tasks=TASKS):
    """The last features of all tasks: stage j of n takes the source's stage m - n + j of m."""
    outputs, ends = {}, [flow.split("_") for flow in flows]
    while len(outputs) < len(tasks):
        task = next(
            t for t in tasks if t not in outputs and {s for s, to in ends if to == t} <= {*outputs}
        )
        last = max(stages[task], 1)
        x, outputs[task] = p, [p]
        for j in range(1, last + 1):
            stage = getattr(net, task)[j - 1]
            for source in (s for s, target in ends if target == task):
                taken = max(stages[source], 1) - last + j
                if source in ("stuff", "thing") and j < last:
                    continue
                x = x + flow(stage, source, outputs[source][max(taken, 0)])
            x = F.relu(conv(stage.conv, x)) if stages[task] else x
            outputs[task].append(x)
    return {task: xs[-1] for task, xs in outputs.items()}


def assert_follows_equation_3(flows, stages):
    net = tiny_subnets(flows, C, std=0.3, stages=stages).double()
    levels = [p.double() for p in pyramid()]
    found = net(levels)
    assert list(map(len, found)) == [5, 5, 3, 3]
    for i, p in enumerate(levels):
        # What comes from stuff or thing exists where they do.
        tasks = TASKS if i < 3 else ("reg", "cls")
        here = [flow for flow in flows if set(flow.split("_")) <= set(tasks)]
        for task, expected in equation_3(net, p, here, {**STAGES, **stages}, tasks).items():
            torch.testing.assert_close(getattr(found, task)[i], expected)


def test_equation_3_literally():
    net, levels = tiny_subnets(channels=C, std=0.3), pyramid()
    found = net(levels)
    for i, p in enumerate(levels[:3]):
        reg = cls = stuff = p
        for j in range(4):
            reg = F.relu(conv(net.reg[j].conv, reg))
            cls = F.relu(conv(net.cls[j].conv, cls + flow(net.cls[j], "reg", reg)))
            stuff = F.relu(conv(net.stuff[j].conv, stuff + flow(net.stuff[j], "reg", reg)))
        (stage,) = net.thing
        flows_in = flow(stage, "stuff", stuff) + flow(stage, "reg", reg)
        thing = F.relu(conv(stage.conv, p + flows_in))
        for task, expected in (("reg", reg), ("cls", cls), ("stuff", stuff), ("thing", thing)):
            torch.testing.assert_close(getattr(found, task)[i], expected)


def up(x, like):
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def test_things_and_stuff_see_p2_with_the_flows_of_p3():
    net, levels = tiny_subnets(channels=C, std=0.3), pyramid()
    p2 = torch.randn(2, C, 34, 32)
    found, plain = net([p2, *levels]), net(levels)
    reg, stuff = levels[0], p2
    for j in range(4):
        reg = F.relu(conv(net.reg[j].conv, reg))
        stuff = F.relu(conv(net.stuff[j].conv, stuff + up(flow(net.stuff[j], "reg", reg), stuff)))
    (stage,) = net.thing
    flows_in = flow(stage, "stuff", stuff) + up(flow(stage, "reg", reg), stuff)
    torch.testing.assert_close(found.stuff[0], stuff)
    torch.testing.assert_close(found.thing[0], F.relu(conv(stage.conv, p2 + flows_in)))
    # Nothing else changes.
    assert list(map(len, found)) == [5, 5, 4, 4]
    for task, skipped in (("cls", 0), ("reg", 0), ("stuff", 1), ("thing", 1)):
        for a, b in zip(getattr(found, task)[skipped:], getattr(plain, task), strict=True):
            assert torch.equal(a, b)


def test_on_p2_a_flow_that_starts_before_the_first_stage_takes_p2():
    """With one stage of reg, stuff_1 takes P_i in place of a feature of reg."""
    net, levels = tiny_subnets(["reg_stuff"], C, std=0.3, stages={"reg": 1, "stuff": 2}), pyramid()
    p2 = torch.randn(2, C, 34, 32)
    reg_1 = F.relu(conv(net.reg[0].conv, levels[0]))
    stuff_1 = F.relu(conv(net.stuff[0].conv, p2 + flow(net.stuff[0], "reg", p2)))
    stuff_2 = conv(net.stuff[1].conv, stuff_1 + up(flow(net.stuff[1], "reg", reg_1), p2))
    torch.testing.assert_close(net([p2, *levels]).stuff[0], F.relu(stuff_2))


@pytest.mark.parametrize("flows", SUBSETS, ids="+".join)
def test_equation_3_with_every_set_of_flows(flows):
    assert_follows_equation_3(flows, {})


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n", range(5))
def test_equation_3_with_every_number_of_stages(task, n):
    assert_follows_equation_3(FLOWS, {task: n})


def test_equation_3_with_mixed_flows_and_stages():
    draw = random.Random(0)
    for _ in range(40):
        stages = {task: draw.randint(0, 4) for task in TASKS}
        kind = draw.choice([FLOWS, CLS_FLOWS])
        assert_follows_equation_3([f for f in kind if draw.random() < 0.7], stages)


@st.composite
def any_flows(draw):
    """Flows without a cycle: those between tasks in some order."""
    order = draw(st.permutations(TASKS))
    pairs = [f"{a}_{b}" for a, b in itertools.combinations(order, 2)]
    return draw(st.lists(st.sampled_from(pairs), unique=True))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(any_flows(), st.fixed_dictionaries({task: st.integers(0, 4) for task in TASKS}))
def test_equation_3_with_any_flows(flows, stages):
    assert_follows_equation_3(flows, stages)


@pytest.mark.parametrize("n", range(5))
def test_location_may_come_from_cls(n):
    assert_follows_equation_3(CLS_FLOWS, {"reg": n})
    assert_follows_equation_3(CLS_FLOWS, {"cls": n})


def test_stages_are_aligned_at_their_end():
    """With two stages, stuff takes reg_3 and reg_4, and never sees reg_1 but through them."""
    net, (p, *_) = tiny_subnets(["reg_stuff"], C, std=0.3, stages={"stuff": 2}), pyramid()
    reg = [p]
    for stage in net.reg:
        reg.append(F.relu(conv(stage.conv, reg[-1])))
    x = p
    for stage, location in zip(net.stuff, reg[3:], strict=True):
        x = F.relu(conv(stage.conv, x + flow(stage, "reg", location)))
    torch.testing.assert_close(net.forward_level(p, True)[0]["stuff"], x)


def test_semantics_enter_the_last_thing_stage_only():
    net = tiny_subnets(["stuff_thing"], C, stages={"thing": 3})
    assert [list(stage.flows) for stage in net.thing] == [[], [], ["stuff"]]


def test_sub_network_without_stages_and_flows_is_the_pyramid_itself():
    levels = pyramid()
    found = tiny_subnets([], C, stages=dict.fromkeys(TASKS, 0))(levels)
    for task in TASKS:
        for feature, p in zip(getattr(found, task), levels, strict=False):
            assert feature is p


def dcn(stage, x, offsets):
    bias = stage.conv.bias
    mask = offsets[:, 18:].sigmoid()
    out = deform_conv2d(x, offsets[:, :18], stage.conv.weight, bias, padding=1, mask=mask)
    return F.relu(out)


def test_equation_4_literally():
    net = tiny_subnets(channels=C, std=0.3, deform_on=["cls", "stuff", "thing"])
    levels = pyramid()
    found = net(levels)
    for i, p in enumerate(levels):
        reg = cls = stuff = p
        for j in range(4):
            reg = F.relu(conv(net.reg[j].conv, reg))
            cls = dcn(net.cls[j], cls, flow(net.cls[j], "reg", cls + reg))
            stuff = dcn(net.stuff[j], stuff, flow(net.stuff[j], "reg", stuff + reg))
        torch.testing.assert_close(found.reg[i], reg)
        torch.testing.assert_close(found.cls[i], cls)
        if i < 3:
            (stage,) = net.thing
            with_stuff = p + flow(stage, "stuff", stuff)
            thing = dcn(stage, with_stuff, flow(stage, "reg", p + reg))
            torch.testing.assert_close(found.stuff[i], stuff)
            torch.testing.assert_close(found.thing[i], thing)


def test_equation_4_with_other_flows():
    """Locations of reg and cls add up to the offsets; stuff and thing enter the convolution."""
    flows = ["reg_cls", "reg_stuff", "cls_stuff", "thing_stuff"]
    stages = {"stuff": 1, "cls": 1}
    net = tiny_subnets(flows, C, std=0.3, stages=stages, deform_on=["stuff"])
    p = pyramid()[0]
    (found,), (stage,) = net.forward_level(p, True), net.stuff
    offsets = sum(flow(stage, task, p + found[task]) for task in ("reg", "cls"))
    expected = dcn(stage, p + flow(stage, "thing", found["thing"]), offsets)
    torch.testing.assert_close(found["stuff"], expected)


def test_one_deformable_sub_network_leaves_the_others_plain():
    net, (p, *_) = tiny_subnets(channels=C, std=0.3, deform_on=["stuff"]), pyramid()
    (found,) = net.forward_level(p, True)
    expected = equation_3(net, p, ["reg_cls"], STAGES)
    for task in ("reg", "cls"):
        torch.testing.assert_close(found[task], expected[task])
    (stage,) = net.thing
    flows_in = flow(stage, "stuff", found["stuff"]) + flow(stage, "reg", found["reg"])
    torch.testing.assert_close(found["thing"], F.relu(conv(stage.conv, p + flows_in)))


def test_deformable_sub_network_without_flow_makes_its_own_offsets():
    net = tiny_subnets([], C, std=0.3, stages={"thing": 2}, deform_on=["thing"])
    p = pyramid()[0]
    x = p
    for stage in net.thing:
        x = dcn(stage, x, conv(stage.conv_offset, x))
    torch.testing.assert_close(net.forward_level(p, True)[0]["thing"], x)


def reached(net, feature):
    """The tasks whose weights the feature depends on; flows count to the task they enter."""
    named = dict(net.named_parameters())
    grads = torch.autograd.grad(feature.sum(), named.values(), allow_unused=True, retain_graph=True)
    return {
        name.split(".")[0]
        for name, grad in zip(named, grads, strict=True)
        if grad is not None and grad.any()
    }


@pytest.mark.parametrize("deform_on", [(), ("cls", "stuff", "thing")], ids=["plain", "dcn"])
@pytest.mark.parametrize("flows", SUBSETS, ids="+".join)
def test_gradients_pass_between_sub_networks_only_through_flows(flows, deform_on):
    net = tiny_subnets(flows, C, std=0.3, deform_on=deform_on)
    (found,) = net.forward_level(torch.randn(1, C, 8, 8), True)
    expected = {task: {task} for task in TASKS}
    for flow in flows:  # in the order of FLOWS, so that stuff is complete when thing takes it
        source, target = flow.split("_")
        expected[target] |= expected[source]
    for task in TASKS:
        assert reached(net, found[task]) == expected[task], task


def test_every_weight_gets_a_gradient():
    net = tiny_subnets(channels=C, std=0.3)
    sum(f.sum() for features in net(pyramid()) for f in features).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_switched_off_flows_and_branches_have_no_weights():
    none = tiny_subnets([], C)
    assert not any("flow" in name for name, _ in none.named_parameters())
    assert len(list(none.parameters())) == 2 * 13
    off = tiny_subnets(channels=C, tasks=["cls", "reg"])
    assert {name.split(".")[0] for name, _ in off.named_parameters()} == {"cls", "reg"}


@pytest.mark.parametrize(
    ("tasks", "stuff", "thing"),
    [(["cls", "reg"], 0, 0), (["cls", "reg", "stuff"], 3, 0), (["cls", "reg", "thing"], 0, 3)],
)
def test_branches_can_be_left_out(tasks, stuff, thing):
    net, levels = tiny_subnets(channels=C, std=0.3, tasks=tasks), pyramid()
    found = net(levels)
    assert list(map(len, found)) == [5, 5, stuff, thing]
    flows = [flow for flow in FLOWS if set(flow.split("_")) <= set(tasks)]
    full = tiny_subnets(flows, C)
    full.load_state_dict(net.state_dict(), strict=False)
    for task in tasks:
        for found_i, expected in zip(
            getattr(found, task), getattr(full(levels), task), strict=True
        ):
            torch.testing.assert_close(found_i, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": {"cls": 5}}, "cls has 5 stages; give 0 to 4"),
        ({"stages": {"thing": -1}}, "thing has -1 stages"),
        ({"flows": ["reg_cls", "cls_reg"]}, "form a cycle"),
        ({"flow_init": "ones"}, "flows start as '' or 'zero', not 'ones'"),
        ({"norm": "GNN"}, "MODEL.RETINANET.NORM 'GNN' is no norm of Detectron2"),
        ({"norm": "GN"}, "MODEL.RETINANET.NORM 'GN' is no norm of Detectron2 for 4 channels"),
        ({"deform_on": ["reg"]}, "'reg' cannot be deformable; choose among cls, stuff, thing"),
        ({"init": "xavier"}, "start as 'normal' or 'msra', not 'xavier'"),
        ({"tasks": ["cls", "reg", "things"]}, "no task 'things'; choose among"),
        ({"tasks": ["cls", "stuff"]}, r"tasks are \['cls', 'stuff'\]; cls and reg must be"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_subnets(**{"channels": C, **arguments})


@pytest.mark.parametrize(("init", "std"), [("normal", 0.01), ("msra", (2 / (9 * 32)) ** 0.5)])
def test_weights_start_as_asked_for(init, std):
    net = Subnetworks(32, num_stages=STAGES, flows=FLOWS, init=init)
    for name, parameter in net.named_parameters():
        expected = std if name.endswith("weight") else 0.0
        assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def config(*opts):
    opts = [f"MODEL.SPATIALFLOW.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    return load_config(str(config_dir() / "Base-SpatialFlow.yaml"), opts)


def test_from_config_reads_every_switch():
    opts = ["NUM_STAGES.STUFF", 2, "FLOWS", ["reg_cls", "reg_thing"], "DEFORM_ON", ["cls"]]
    cfg = config(*opts, "CHECKPOINT_SUBNETS", True, "FLOW_INIT", "zero")
    net = Subnetworks(cfg, 8)
    assert {task: len(getattr(net, task)) for task in TASKS} == {**STAGES, "stuff": 2}
    sources = {task: [list(s.flows) for s in getattr(net, task)] for task in TASKS}
    assert sources == {
        "reg": [[]] * 4,
        "cls": [["reg"]] * 4,
        "stuff": [[]] * 2,
        "thing": [["reg"]],
    }
    assert net.cls[0].flows["reg"].out_channels == 27
    assert not net.cls[0].flows["reg"].conv.weight.any()
    assert net.checkpoint
    cfg.MODEL.SPATIALFLOW.THING_ON = False
    assert not hasattr(Subnetworks(cfg, 8), "thing")


def test_from_config_reads_the_type_of_the_flows():
    for name, cls in (("ConvFlow", ConvFlow), ("AttentionFlow", AttentionFlow)):
        net = Subnetworks(config("FLOW_TYPE", name), 8)
        flows = [module for module in net.modules() if isinstance(module, Flow)]
        assert len(flows) == 10 and {type(flow) for flow in flows} == {cls}
    with pytest.raises(ValueError, match="no flow 'Attention' .* AttentionFlow, ConvFlow, Poi"):
        Subnetworks(config("FLOW_TYPE", "Attention"), 8)


@pytest.mark.parametrize("deform_on", [[], ["cls", "stuff", "thing"]], ids=["plain", "dcn"])
def test_norm_of_the_config_follows_every_convolution_of_a_stage(deform_on):
    cfg = config("DEFORM_ON", deform_on)
    none = Subnetworks(cfg, 32).state_dict()
    cfg.MODEL.RETINANET.NORM = "GN"
    net = Subnetworks(cfg, 32)
    added = {f"{t}.{j}.conv.norm" for t in TASKS for j in range(STAGES[t])}
    assert net.state_dict().keys() - none.keys() == {
        f"{norm}.{part}" for norm in added for part in ("weight", "bias")
    }
    assert all(type(net.get_submodule(norm)) is torch.nn.GroupNorm for norm in added)


@pytest.mark.parametrize("deform_on", [(), ("cls",)], ids=["plain", "dcn"])
def test_norm_comes_between_convolution_and_relu(deform_on):
    net = tiny_subnets([], 32, std=0.3, norm="GN", stages={"cls": 1}, deform_on=deform_on)
    (stage,), p = net.cls, pyramid(32)[0]
    norm, (weight, bias) = stage.conv.norm, (stage.conv.weight, stage.conv.bias)
    convolved = F.conv2d(p, weight, bias, padding=1)
    if deform_on:
        offsets, mask = conv(stage.conv_offset, p).split([18, 9], dim=1)
        convolved = deform_conv2d(p, offsets, weight, bias, padding=1, mask=mask.sigmoid())
    expected = F.relu(F.group_norm(convolved, 32, norm.weight, norm.bias))
    torch.testing.assert_close(net.forward_level(p, False)[0]["cls"], expected)


def test_batch_norm_is_warned_of_and_sync_bn_is_that_of_the_processes(caplog):
    cfg = config()
    cfg.MODEL.RETINANET.NORM = "SyncBN"
    net = Subnetworks(cfg, 8)
    assert isinstance(net.reg[0].conv.norm, torch.nn.BatchNorm2d)
    assert "P3 to P7 share the statistics" in caplog.text


@pytest.mark.parametrize("flow_type", [ConvFlow, PointwiseFlow, AttentionFlow])
@pytest.mark.parametrize("deform_on", [(), ("cls", "stuff", "thing")], ids=["plain", "dcn"])
def test_flows_that_start_at_zero_add_nothing_but_learn(flow_type, deform_on):
    kwargs = {"num_stages": STAGES, "init": "msra", "flow_type": flow_type, "deform_on": deform_on}
    net = Subnetworks(8, flows=FLOWS, flow_init="zero", **kwargs)
    without = Subnetworks(8, flows=[], **kwargs)
    without.load_state_dict(net.state_dict(), strict=False)
    for stage in without.modules():
        if getattr(stage, "conv_offset", None) is not None:
            torch.nn.init.zeros_(stage.conv_offset.weight)
    levels = pyramid(8)
    found, expected = net(levels), without(levels)
    for a, b in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        torch.testing.assert_close(a, b)
    sum(feature.square().sum() for feature in itertools.chain(*found)).backward()
    output = "output" if flow_type is AttentionFlow else "conv"
    for name, parameter in net.named_parameters():
        if ".flows." in name and name.endswith(f"{output}.weight"):
            assert parameter.grad.any(), name


def test_msra_keeps_the_scale_of_features_that_normal_loses():
    p = [torch.randn(1, 32, 16, 16)]
    scale = {
        init: Subnetworks(32, num_stages=STAGES, flows=[], init=init)(p).reg[0].std()
        for init in ("normal", "msra")
    }
    assert scale["normal"] < 0.01
    assert 0.2 < scale["msra"] < 3


@pytest.mark.parametrize("flow_type", [ConvFlow, AttentionFlow])
@pytest.mark.parametrize("deform_on", [(), ("cls", "stuff", "thing")])
def test_checkpoint_has_the_same_gradients_and_runs_the_stages_twice(deform_on, flow_type):
    found, calls = [], []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        net = tiny_subnets(
            channels=C, deform_on=deform_on, checkpoint=checkpoint, flow_type=flow_type
        )
        net.reg[0].register_forward_hook(lambda *_: calls.append(1))
        features = [p.requires_grad_() for p in pyramid()]
        loss = sum((f * f).sum() for task in net(features) for f in task)
        loss.backward()
        found.append([loss, *(x.grad for x in features), *(x.grad for x in net.parameters())])
        net.eval()(features)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    levels = 5  # each runs once in training, once in evaluation; with checkpoints three times
    assert len(calls) == 2 * levels + 3 * levels
