"""The sub-networks for inference, with the convolutions that read one feature as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .flows import ConvFlow, Flow
from .subnets import (
    LastFeatures,
    Stage,
    StageFeatures,
    SubnetFeatures,
    Subnetworks,
    run_levels,
    sources_of_coarser,
    starting_from,
)
from .wiring import DETECTION_TASKS, Edge


class FusedSubnetworks(nn.Module):
    """Sub-networks in which the convolutions that read the same feature are one, wider one.

    reg_j is read by stage j + 1 of reg and by the flows to cls, stuff and thing. Flows that are no
    :class:`ConvFlow`, and deformable stages, read their features themselves.

    Args:
        subnets: gives the parts, which are changed.
    """

    def __init__(self, subnets: Subnetworks):
        super().__init__()
        self.subnets = subnets
        groups: dict[str, list[Edge]] = {}
        for edge in _convolution_edges(subnets):
            groups.setdefault(_feature_name(edge.source, edge.source_stage), []).append(edge)
        # P6 and P7 have the targets of detection alone, P2 has the others alone: two blocks.
        self.readers = {
            name: sorted(edges, key=lambda edge: edge.target not in DETECTION_TASKS)
            for name, edges in groups.items()
            if len(edges) > 1
        }
        self.wide = nn.ModuleDict(
            {
                name: _side_by_side([self._take_convolution(edge) for edge in edges])
                for name, edges in self.readers.items()
            }
        )

    def forward(self, pyramid: Sequence[Tensor]) -> SubnetFeatures:
        """See :class:`Subnetworks`."""
        return run_levels(self.forward_level, pyramid)

    def forward_level(
        self, p: Tensor, segmentation: bool, finer: Tensor | None = None
    ) -> list[LastFeatures]:
        """See :class:`Subnetworks`."""
        levels = [self._run(p, self.subnets.tasks_on(segmentation), _Level({}, {}))]
        if finer is not None:
            levels.append(self._run(finer, self.subnets.segmentation_tasks, levels[0]))
        return [{task: outputs[-1] for task, outputs in level.features.items()} for level in levels]

    def _run(self, p: Tensor, tasks: Sequence[str], coarser: _Level) -> _Level:
        """As that of :class:`Subnetworks`."""
        features: StageFeatures = {task: [p] for task in tasks}
        available = starting_from(p, coarser.features) | features
        made = coarser.made | self._read(_feature_name("", 0), p, tasks)
        for task in tasks:
            for j, stage in enumerate(getattr(self.subnets, task), start=1):
                x = made.get(Edge(task, j - 1, task, j), features[task][-1])
                edges = [x for x in self.subnets.edges_into[task, j] if x.source in available]
                sources = {
                    edge.source: made.get(edge, available[edge.source][edge.source_stage])
                    for edge in edges
                }
                x = stage(x, sources, sources_of_coarser(edges, tasks))
                features[task].append(x)
                made |= self._read(_feature_name(task, j), x, tasks)
        return _Level(features, made)

    def _read(self, name: str, feature: Tensor, tasks: Sequence[str]) -> dict[Edge, Tensor]:
        """What the wide convolution of a feature makes for each of the edges that read it."""
        edges = [edge for edge in self.readers.get(name, ()) if edge.target in tasks]
        if not edges:
            return {}
        conv, channels = self.wide[name], feature.shape[1]
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        first = self.readers[name].index(edges[0]) * channels
        wanted = slice(first, first + len(edges) * channels)
        parts = F.conv2d(feature, conv.weight[wanted], conv.bias[wanted], padding=1)
        return dict(zip(edges, parts.split(channels, dim=1), strict=True))

    def _take_convolution(self, edge: Edge) -> nn.Conv2d:
        """The convolution of an edge, which from now on is given the result of it."""
        stage = getattr(self.subnets, edge.target)[edge.target_stage - 1]
        if edge.source == edge.target:
            conv = stage.conv
            norm = getattr(conv, "norm", None)
            stage.conv = nn.Identity() if norm is None else norm
            return conv
        conv = stage.flows[edge.source].conv
        stage.flows[edge.source] = _Given(conv.in_channels, conv.out_channels)
        return conv


class _Level(NamedTuple):
    """Of one level: the features of all stages, and what the wide convolutions have made of them
    for an edge, in place of the feature that the edge reads."""

    features: StageFeatures
    made: dict[Edge, Tensor]


class _Given(Flow):
    """In place of a flow whose result is there already."""

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return source


def _convolution_edges(subnets: Subnetworks) -> Iterator[Edge]:
    """The edges that are a 3x3 convolution of a feature alone.

    From a stage to the next one of its own sub-network is an edge here, too, unless a flow is added
    between.
    """
    for (task, j), edges in subnets.edges_into.items():
        stage = getattr(subnets, task)[j - 1]
        if type(stage) is not Stage:
            continue
        if stage.conv is not None and not edges:
            yield Edge(task, j - 1, task, j)
        yield from (edge for edge in edges if type(stage.flows[edge.source]) is ConvFlow)


def _feature_name(task: str, stage: int) -> str:
    """Of the feature of a stage; all sub-networks start from one feature, P_i."""
    return f"{task}_{stage}" if stage else "p"


def _side_by_side(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One convolution with the outputs of several 3x3 convolutions, one after the other."""
    first = convs[0]
    wide = nn.utils.skip_init(
        nn.Conv2d, first.in_channels, sum(x.out_channels for x in convs), 3, padding=1
    )
    wide.weight = nn.Parameter(torch.cat([x.weight for x in convs]))
    wide.bias = nn.Parameter(torch.cat([x.bias for x in convs if x.bias is not None]))
    return wide
