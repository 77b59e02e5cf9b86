"""Which stages the flows join."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialflow.modeling.wiring import TASKS, Edge, execution_order, wire

PAPER = {"reg": 4, "cls": 4, "stuff": 4, "thing": 1}
FLOWS = ["reg_cls", "reg_stuff", "reg_thing", "stuff_thing"]


def edges(flow, **stages):
    """(source stage, target stage) of the edges of one flow."""
    return [(x.source_stage, x.target_stage) for x in wire({**PAPER, **stages}, [flow])]


def test_edges_of_the_paper():
    assert wire(PAPER, FLOWS) == [
        *(Edge("reg", j, "cls", j) for j in (1, 2, 3, 4)),
        *(Edge("reg", j, "stuff", j) for j in (1, 2, 3, 4)),
        Edge("reg", 4, "thing", 1),
        Edge("stuff", 4, "thing", 1),
    ]


def test_stages_are_aligned_at_their_end():
    assert edges("reg_stuff", stuff=2) == [(3, 1), (4, 2)]
    assert edges("reg_cls", reg=2) == [(0, 1), (0, 2), (1, 3), (2, 4)]


def test_flows_of_segmentation_enter_the_last_stage():
    assert edges("stuff_thing", thing=3) == [(4, 3)]
    assert edges("stuff_cls", stuff=2) == [(2, 4)]
    assert edges("thing_cls") == [(1, 4)]


def test_sub_network_without_stages_counts_as_one():
    assert edges("reg_thing", thing=0) == [(4, 1)]
    assert edges("stuff_thing", stuff=0) == [(1, 1)]
    assert edges("reg_cls", reg=0, cls=2) == [(0, 1), (1, 2)]


def test_flows_of_sub_networks_that_do_not_exist_are_left_out():
    assert {x.target for x in wire({"reg": 4, "cls": 4, "thing": 1}, FLOWS)} == {"cls", "thing"}


@pytest.mark.parametrize(
    ("flows", "message"),
    [
        (["regcls"], "no flow 'regcls'; a flow is named source_target, both among reg, cls, stuff"),
        (["reg_mask"], "no flow 'reg_mask'"),
        (["reg_cls_1"], "no flow 'reg_cls_1'"),
        (["reg_reg"], "'reg_reg' leads from a sub-network to itself"),
        (["reg_cls", "reg_cls"], "'reg_cls' is listed more than once"),
        (["reg_cls", "cls_reg"], "(reg_cls, cls_reg|cls_reg, reg_cls) form a cycle"),
        (["reg_cls", "stuff_thing", "thing_cls", "cls_stuff"], "thing_cls.* form a cycle"),
    ],
)
def test_wrong_flows_are_named(flows, message):
    with pytest.raises(ValueError, match=message):
        wire(PAPER, flows)


def test_message_of_a_cycle_leaves_out_what_is_not_in_it():
    with pytest.raises(ValueError, match="form a cycle") as found:
        wire(PAPER, ["reg_cls", "stuff_thing", "thing_cls", "cls_stuff"])
    assert "reg_cls" not in str(found.value)


@pytest.mark.parametrize(
    ("flows", "order"),
    [
        ([], "reg cls stuff thing"),
        (FLOWS, "reg cls stuff thing"),
        (["cls_reg", "cls_stuff", "stuff_thing"], "cls reg stuff thing"),
        (["reg_stuff", "stuff_cls"], "reg stuff cls thing"),
        (["thing_cls", "stuff_thing", "reg_stuff"], "reg stuff thing cls"),
    ],
)
def test_order_of_execution(flows, order):
    assert execution_order(PAPER, [flow.split("_") for flow in flows]) == order.split()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.permutations(TASKS),
    st.sets(st.sampled_from(list(itertools.combinations(range(4), 2)))),
    st.fixed_dictionaries({task: st.integers(0, 4) for task in TASKS}),
)
def test_every_source_is_there_before_it_is_read(tasks, pairs, stages):
    flows = [f"{tasks[a]}_{tasks[b]}" for a, b in pairs]
    found = wire(stages, flows)
    order = execution_order(TASKS, [(x.source, x.target) for x in found])
    assert {f"{x.source}_{x.target}" for x in found} == set(flows)
    for edge in found:
        assert order.index(edge.source) < order.index(edge.target)
        assert 0 <= edge.source_stage <= max(stages[edge.source], 1)
        assert 1 <= edge.target_stage <= max(stages[edge.target], 1)
    # Every flow gives the last feature of its source to the last stage of its target.
    ends = {(x.source, x.target): x for x in found}  # the last edge of each
    for (source, target), edge in ends.items():
        assert edge[1::2] == (max(stages[source], 1), max(stages[target], 1))
