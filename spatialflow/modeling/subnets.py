"""The four sub-networks and the information flows between them (Sec. III-B and III-C).

Legend: N images, C channels, P_i the FPN level i with stride 2^i, H_i x W_i its size.
A *stage* is phi of the paper: a 3x3 convolution and a ReLU on the sum of the stage before and the
flows that enter it. A *flow* is psi or zeta, see :mod:`spatialflow.modeling.flows`; which stages it
joins, see :func:`spatialflow.modeling.wiring.wire`. With the paper's flows that is eq. (3):

    reg_j   = relu(conv(reg_{j-1}))
    cls_j   = relu(conv(cls_{j-1}   + flow(reg_j)))
    stuff_j = relu(conv(stuff_{j-1} + flow(reg_j)))
    thing_1 = relu(conv(P_i + flow(stuff_4) + flow(reg_4)))

(The paper prints the last line with the deformable offsets of eq. 4 already in eq. 3; the text and
the authors' code keep them to eq. 4, and so does this module.)

Things and stuff may see P2, too, where neither reg nor cls exist. The flows from those bring their
features of P3 there: the papers have no P2, this is our extension.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .deform_conv import ModulatedDeformConv
from .flows import ConvFlow, Flow, find_flow_type, resize_like
from .layers import conv3x3, initialize
from .norms import get_norm, norm_for_processes
from .wiring import DETECTION_TASKS, TASKS, Edge, execution_order, wire

MAX_STAGES = 4
DETECTION_LEVELS = 5
"""P3 to P7."""
SEGMENTATION_LEVELS = 3
"""Of these, things and stuff see P3 to P5 only (Sec. III-A)."""

FlowType = Callable[[int, int], Flow]
"""Makes a flow of C and the channels of its result."""

LastFeatures = dict[str, Tensor]
"""The last feature of each task on one level, (N, C, H_i, W_i)."""
StageFeatures = dict[str, list[Tensor]]
"""The features of all stages of each task on one level; the first one is P_i."""

logger = logging.getLogger(__name__)


class SubnetFeatures(NamedTuple):
    """What the sub-networks give to the heads.

    ``cls`` and ``reg``: a tensor (N, C, H_i, W_i) for each of P3 to P7. ``stuff`` and ``thing``:
    for P3 to P5, for P2 before them where there is one, and none where the branch is off.
    """

    cls: list[Tensor]
    reg: list[Tensor]
    stuff: list[Tensor]
    thing: list[Tensor]


class Stage(nn.Module):
    """One stage, eq. (3): ``relu(norm(conv(x + flow(a) + flow(b))))``, the norm where there is one.

    Args:
        channels: C.
        sources: the tasks whose flows enter.
        flow_type: type of the flows, a name in ``FLOW_REGISTRY``.
        norm: name of a norm of Detectron2 between convolution and ReLU; "": none.
        conv: False makes the stage of a sub-network that has none: the flows are added to P_i
            and that is all.
    """

    def __init__(
        self,
        channels: int,
        sources: Sequence[str] = (),
        *,
        flow_type: FlowType = ConvFlow,
        norm: str = "",
        conv: bool = True,
    ):
        super().__init__()
        self.flows = nn.ModuleDict({source: flow_type(channels, channels) for source in sources})
        self.conv = conv3x3(channels, channels, norm) if conv else None

    def forward(
        self, x: Tensor, sources: Mapping[str, Tensor], coarser: Collection[str] = ()
    ) -> Tensor:
        """The feature of this stage.

        Args:
            x: (N, C, H_i, W_i), the feature of the stage before.
            sources: features by task. A flow whose source is not among them, as it does not exist
                on this level, does not enter.
            coarser: the tasks whose features are of the next coarser level.

        Returns:
            (N, C, H_i, W_i).
        """
        x = _add_flows(x, self.flows, sources, coarser)
        return x if self.conv is None else F.relu(self.conv(x))

    def initialize(self, init: str) -> None:
        """Set all weights to initial values, see :func:`spatialflow.modeling.layers.initialize`."""
        for flow in self.flows.values():
            assert isinstance(flow, Flow)
            flow.initialize(init)
        if self.conv is not None:
            initialize(self.conv, init)


class DeformableStage(nn.Module):
    """One stage, eq. (4): ``relu(norm(dcn(x + flow(semantics); flow(x + location))))``.

    The location, of reg or cls, does not enter the input of the convolution: its flow makes the
    offsets and the modulation, together with ``x`` as it was before the semantics, of stuff or
    thing, were added. Without a location flow, ``x`` alone makes them.

    Args:
        channels, sources, flow_type, norm: see :class:`Stage`.
    """

    def __init__(
        self,
        channels: int,
        sources: Sequence[str] = (),
        *,
        flow_type: FlowType = ConvFlow,
        norm: str = "",
    ):
        super().__init__()
        self.conv = ModulatedDeformConv(
            channels, channels, 3, padding=1, norm=get_norm(norm, channels)
        )
        initialize(self.conv, "normal")
        offset_channels = self.conv.num_offset_channels
        locations = [source for source in sources if source in DETECTION_TASKS]
        self.conv_offset = None if locations else conv3x3(channels, offset_channels)
        self.flows = nn.ModuleDict(
            {
                source: flow_type(channels, offset_channels if source in locations else channels)
                for source in sources
            }
        )

    def forward(
        self, x: Tensor, sources: Mapping[str, Tensor], coarser: Collection[str] = ()
    ) -> Tensor:
        """As :meth:`Stage.forward`."""
        sources = {k: resize_like(v, x) if k in coarser else v for k, v in sources.items()}
        semantics = {k: v for k, v in sources.items() if k not in DETECTION_TASKS}
        offsets = [
            flow(x + sources[source], x)
            for source, flow in self.flows.items()
            if source in DETECTION_TASKS
        ]
        if self.conv_offset is not None:
            offsets = [self.conv_offset(x)]
        x = _add_flows(x, self.flows, semantics)
        return F.relu(self.conv(x, sum(offsets[1:], start=offsets[0])))


class Subnetworks(nn.Module):
    """The parallel sub-networks between the FPN and the heads, weights shared over the levels.

    Args:
        channels: C.
        num_stages: the stages of each of ``cls``, ``reg``, ``stuff`` and ``thing``, 0 to 4.
        flows: names "source_target", see :func:`spatialflow.modeling.wiring.wire`.
        flow_type: makes each of them.
        deform_on: the tasks whose stages are deformable, eq. (4).
        tasks: the sub-networks that exist, ``cls`` and ``reg`` among them. A flow from or to one
            that does not exist is left out.
        norm: name of a norm of Detectron2 behind the convolution of each stage; "": none, as in
            the papers.
        init: how the weights of plain stages and flows start: "normal" as in RetinaNet, N(0, 0.01),
            or "msra", which keeps the scale of the features whatever C is.
        flow_init: "zero": flows give 0 until training changes them; "": they start as ``init``
            says.
        checkpoint: in training, keep P_i only and recompute the rest for the gradients.

    Raises:
        ValueError: a task, norm, initialisation, flow or number of stages that does not exist, or
            flows in a cycle.
    """

    @configurable
    def __init__(
        self,
        channels: int,
        *,
        num_stages: Mapping[str, int],
        flows: Sequence[str],
        flow_type: FlowType = ConvFlow,
        deform_on: Sequence[str] = (),
        tasks: Sequence[str] = TASKS,
        norm: str = "",
        init: str = "normal",
        flow_init: str = "",
        checkpoint: bool = False,
    ):
        super().__init__()
        _check_arguments(num_stages, deform_on, tasks)
        _check_norm(norm, channels)
        self.checkpoint = checkpoint
        edges = wire({task: num_stages[task] for task in tasks}, flows)
        self.order = execution_order(tasks, [(edge.source, edge.target) for edge in edges])
        self.edges_into: dict[tuple[str, int], list[Edge]] = {}
        for task in self.order:
            make: Callable[..., nn.Module] = DeformableStage if task in deform_on else Stage
            if num_stages[task] == 0:
                make = partial(Stage, conv=False)
            stages = nn.ModuleList()
            for j in range(1, max(num_stages[task], 1) + 1):
                self.edges_into[task, j] = [x for x in edges if x[2:] == (task, j)]
                sources = [edge.source for edge in self.edges_into[task, j]]
                stages.append(make(channels, sources, flow_type=flow_type, norm=norm))
            self.add_module(task, stages)
        self._initialize(init, flow_init)

    @classmethod
    def from_config(cls, cfg: CfgNode, channels: int) -> dict:
        """``channels``: of the FPN."""
        keys = cfg.MODEL.SPATIALFLOW
        branches = {"cls": True, "reg": True, "stuff": keys.STUFF_ON, "thing": keys.THING_ON}
        return {
            "channels": channels,
            "num_stages": {task: keys.NUM_STAGES[task.upper()] for task in TASKS},
            "flows": keys.FLOWS,
            "flow_type": find_flow_type(keys.FLOW_TYPE),
            "deform_on": keys.DEFORM_ON,
            "tasks": [task for task, on in branches.items() if on],
            "norm": norm_for_processes(cfg.MODEL.RETINANET.NORM, cfg.MODEL.DEVICE),
            "init": keys.SUBNET_INIT,
            "flow_init": keys.FLOW_INIT,
            "checkpoint": keys.CHECKPOINT_SUBNETS,
        }

    def forward(self, pyramid: Sequence[Tensor]) -> SubnetFeatures:
        """Run the sub-networks on P3 to P7, each (N, C, H_i, W_i), or on P2 to P7."""
        run = self.forward_level
        if self.checkpoint and self.training:
            run = partial(checkpoint, self.forward_level, use_reentrant=False)
        return run_levels(run, pyramid)

    def forward_level(
        self, p: Tensor, segmentation: bool, finer: Tensor | None = None
    ) -> list[LastFeatures]:
        """The last feature of every task on one level.

        Args:
            p: P_i, (N, C, H_i, W_i).
            segmentation: whether the level feeds things and stuff.
            finer: P_{i-1}, for things and stuff alone; None without it.

        Returns:
            The features of this level and, with it, those of the finer one.
        """
        features = self._run(p, self.tasks_on(segmentation), {})
        levels = [features]
        if finer is not None:
            levels.append(self._run(finer, self.segmentation_tasks, features))
        return [{task: outputs[-1] for task, outputs in level.items()} for level in levels]

    def _run(self, p: Tensor, tasks: Sequence[str], coarser: StageFeatures) -> StageFeatures:
        """The features of all stages of some tasks on one level, P_i itself as stage 0.

        Args:
            p: P_i.
            tasks: in the order of execution.
            coarser: features of the next coarser level, for flows from tasks that are not here.
        """
        features: StageFeatures = {task: [p] for task in tasks}
        available = starting_from(p, coarser) | features
        for task in tasks:
            for j, stage in enumerate(getattr(self, task), start=1):
                edges = [edge for edge in self.edges_into[task, j] if edge.source in available]
                sources = {x.source: available[x.source][x.source_stage] for x in edges}
                x = features[task][-1]
                features[task].append(stage(x, sources, sources_of_coarser(edges, tasks)))
        return features

    @property
    def segmentation_tasks(self) -> list[str]:
        """Things and stuff, in the order in which they run."""
        return [task for task in self.order if task not in DETECTION_TASKS]

    def tasks_on(self, segmentation: bool) -> list[str]:
        """The tasks in the order in which they run on a level, see :meth:`forward_level`."""
        return [task for task in self.order if segmentation or task in DETECTION_TASKS]

    def _initialize(self, init: str, flow_init: str) -> None:
        if init not in ("normal", "msra"):
            raise ValueError(f"The sub-networks start as 'normal' or 'msra', not {init!r}.")
        if flow_init not in ("", "zero"):
            raise ValueError(f"The flows start as '' or 'zero', not {flow_init!r}.")
        for module in self.modules():
            if init == "msra" and isinstance(module, Stage):
                module.initialize(init)
        for module in self.modules():
            if flow_init and isinstance(module, Flow):
                module.initialize(flow_init)


def sources_of_coarser(edges: Sequence[Edge], tasks: Collection[str]) -> set[str]:
    """The sources of edges whose features are of the coarser level: they are none of the tasks
    that run on this one, and not its P_i."""
    return {edge.source for edge in edges if edge.source not in tasks and edge.source_stage}


def starting_from(p: Tensor, coarser: StageFeatures) -> StageFeatures:
    """The features of a coarser level for the flows on P_i, which is their stage 0 there."""
    return {task: [p, *features[1:]] for task, features in coarser.items()}


def run_levels(
    run: Callable[[Tensor, bool, Tensor | None], list[LastFeatures]], pyramid: Sequence[Tensor]
) -> SubnetFeatures:
    """Sub-networks on all levels.

    Args:
        run: gives the last feature of every task, as :meth:`Subnetworks.forward_level`.
        pyramid: P3 to P7, each (N, C, H_i, W_i), or P2 to P7.
    """
    features: dict[str, list[Tensor]] = {task: [] for task in TASKS}
    finer = pyramid[0] if len(pyramid) > DETECTION_LEVELS else None
    for level, p in enumerate(pyramid[-DETECTION_LEVELS:]):
        outputs = run(p, level < SEGMENTATION_LEVELS, finer if level == 0 else None)
        for last in reversed(outputs):
            for task, feature in last.items():
                features[task].append(feature)
    return SubnetFeatures(**features)


def _add_flows(
    x: Tensor,
    flows: nn.ModuleDict,
    sources: Mapping[str, Tensor],
    coarser: Collection[str] = (),
) -> Tensor:
    """``x`` and what the flows of these sources give, the last of TASKS first, as in eq. (3)."""
    if not sources:
        return x
    total = x
    for source, flow in reversed(list(flows.items())):
        if source in sources:
            assert isinstance(flow, Flow)
            bring = flow.from_coarser if source in coarser else flow
            total = total + bring(sources[source], x)
    return total


def _check_arguments(
    num_stages: Mapping[str, int], deform_on: Sequence[str], tasks: Sequence[str]
) -> None:
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ValueError(f"There is no task {unknown[0]!r}; choose among {', '.join(TASKS)}.")
    if not {"cls", "reg"} <= set(tasks):
        raise ValueError(f"The tasks are {list(tasks)}; cls and reg must be among them.")
    for task in TASKS:
        if not 0 <= num_stages[task] <= MAX_STAGES:
            raise ValueError(f"{task} has {num_stages[task]} stages; give 0 to {MAX_STAGES}.")
    for task in deform_on:
        if task not in ("cls", "stuff", "thing"):
            raise ValueError(f"{task!r} cannot be deformable; choose among cls, stuff, thing.")


def _check_norm(norm: str, channels: int) -> None:
    try:
        built = get_norm(norm, channels)
    except (KeyError, ValueError) as e:
        raise ValueError(
            f"MODEL.RETINANET.NORM {norm!r} is no norm of Detectron2 for {channels} channels: {e}"
        ) from e
    if isinstance(built, (nn.BatchNorm2d, nn.SyncBatchNorm)):
        logger.warning(
            "MODEL.RETINANET.NORM %s: P3 to P7 share the statistics of the sub-networks' batch "
            "norms, which differ between levels; GN has none.",
            norm,
        )
