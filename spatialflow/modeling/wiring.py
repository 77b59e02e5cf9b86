"""Between which sub-networks and stages flows lead: the wiring as data (Sec. III-C)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import NamedTuple

TASKS = ("reg", "cls", "stuff", "thing")
DETECTION_TASKS = ("reg", "cls")
"""They exist on P3 to P7; stuff and thing on P3 to P5 only (Sec. III-A)."""


class Edge(NamedTuple):
    """A flow from a stage of one sub-network into a stage of another.

    Stages count from 1. ``source_stage`` 0 is what all sub-networks start from, P_i.
    """

    source: str
    source_stage: int
    target: str
    target_stage: int


def wire(num_stages: Mapping[str, int], flows: Sequence[str]) -> list[Edge]:
    """The edges of a set of flows.

    Stages are aligned at their end: stage j of n takes the feature of the source's stage m - n + j
    of m, so that thing_1 takes reg_4, and P_i where that is less than 1. A flow from reg or cls,
    which know locations, enters every stage of its target; a flow from stuff or thing carries their
    last feature into the last stage (the paper's stuff-thing flow). A sub-network without stages
    counts as one stage: its flows are added to P_i and that is all (Table V, third row, does not
    say how; this is our reading).

    Args:
        num_stages: the number of stages of each sub-network that exists.
        flows: names "source_target". A flow from or to a sub-network that does not exist is left
            out.

    Returns:
        The edges in the order of execution: by target, then by stage, then by source. An edge from
        stuff or thing exists where they do, on P3 to P5.

    Raises:
        ValueError: a flow between tasks that are not known, from a task to itself, listed twice, or
            in a cycle.
    """
    ends = [ends for ends in map(_parse, flows) if set(ends) <= set(num_stages)]
    if repeated := {flow for flow in flows if flows.count(flow) > 1}:
        raise ValueError(f"The flow {min(repeated)!r} is listed more than once: {list(flows)}.")
    return [
        edge
        for task in execution_order(num_stages, ends)
        for edge in _edges_into(task, num_stages, [s for s, target in ends if target == task])
    ]


def execution_order(tasks: Iterable[str], ends: Iterable[tuple[str, str]]) -> list[str]:
    """The tasks, every source before its targets, otherwise in the order of :data:`TASKS`.

    Args:
        tasks: the sub-networks that exist.
        ends: (source, target) of the flows between them.

    Raises:
        ValueError: the flows form a cycle.
    """
    sorter = TopologicalSorter({task: () for task in tasks})
    for source, target in ends:
        sorter.add(target, source)
    try:
        sorter.prepare()
    except CycleError as e:
        flows = ", ".join(f"{source}_{target}" for source, target in pairwise(e.args[1]))
        raise ValueError(
            f"The flows {flows} form a cycle: none of these sub-networks can run before the "
            "others. Leave one flow out."
        ) from e
    order: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready += sorter.get_ready()
        order.append(min(ready, key=TASKS.index))
        ready.remove(order[-1])
        sorter.done(order[-1])
    return order


def _edges_into(target: str, num_stages: Mapping[str, int], sources: Sequence[str]) -> list[Edge]:
    last = max(num_stages[target], 1)
    edges = []
    for stage in range(1, last + 1):
        for source in sorted(sources, key=TASKS.index):
            if source in DETECTION_TASKS or stage == last:
                source_stage = max(num_stages[source], 1) - last + stage
                edges.append(Edge(source, max(source_stage, 0), target, stage))
    return edges


def _parse(flow: str) -> tuple[str, str]:
    source, _, target = flow.partition("_")
    if source not in TASKS or target not in TASKS:
        raise ValueError(
            f"There is no flow {flow!r}; a flow is named source_target, both among "
            f"{', '.join(TASKS)}."
        )
    if source == target:
        raise ValueError(f"The flow {flow!r} leads from a sub-network to itself.")
    return source, target
