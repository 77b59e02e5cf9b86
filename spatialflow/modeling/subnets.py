"""The four sub-networks and the information flows between them (Sec. III-B and III-C).

Legend: N images, C channels, P_i the FPN level i with stride 2^i, H_i x W_i its size.
A *stage* is phi of the paper: a 3x3 convolution and a ReLU on the sum of the stage before and the
flows that enter it. A *flow* is psi or zeta: one 3x3 convolution without an activation. Eq. (3):

    reg_j   = relu(conv(reg_{j-1}))
    cls_j   = relu(conv(cls_{j-1}   + flow(reg_j)))
    stuff_j = relu(conv(stuff_{j-1} + flow(reg_j)))
    thing_1 = relu(conv(P_i + flow(stuff_4) + flow(reg_4)))

(The paper prints the last line with the deformable offsets of eq. 4 already in eq. 3; the text and
the authors' code keep them to eq. 4, and so does this module.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import configurable
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .deform_conv import ModulatedDeformConv

TASKS = ("cls", "reg", "stuff", "thing")
MAX_STAGES = 4
SEGMENTATION_LEVELS = 3
"""Things and stuff see P3 to P5 only (Sec. III-A)."""


class SubnetFeatures(NamedTuple):
    """What the sub-networks give to the heads.

    ``cls`` and ``reg``: a tensor (N, C, H_i, W_i) for each of P3 to P7. ``stuff`` and ``thing``:
    for P3 to P5 only, and none where the branch is off.
    """

    cls: list[Tensor]
    reg: list[Tensor]
    stuff: list[Tensor]
    thing: list[Tensor]


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution, padding 1, initialised as RetinaNet's head: N(0, 0.01), bias 0."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return conv


class Stage(nn.Module):
    """One stage, eq. (3): ``relu(conv(x + flow(location) + flow(semantics)))``.

    Args:
        channels: C.
        location: whether a flow from the location sub-network (reg, or cls in Fig. 4) enters.
        semantics: whether the stuff-thing flow enters.
        conv: False makes the stage of a sub-network that has none: the flows are added to P_i
            and that is all (Table V, third row, does not say how; this is our reading).
    """

    def __init__(
        self, channels: int, *, location: bool = False, semantics: bool = False, conv: bool = True
    ):
        super().__init__()
        self.location_flow = conv3x3(channels, channels) if location else None
        self.semantic_flow = conv3x3(channels, channels) if semantics else None
        self.conv = conv3x3(channels, channels) if conv else None

    def forward(self, x: Tensor, location: Tensor | None, semantics: Tensor | None) -> Tensor:
        """Every tensor, and the result, is (N, C, H_i, W_i)."""
        if self.semantic_flow is not None:
            x = x + self.semantic_flow(semantics)
        if self.location_flow is not None:
            x = x + self.location_flow(location)
        return x if self.conv is None else F.relu(self.conv(x))


class DeformableStage(nn.Module):
    """One stage, eq. (4): ``relu(dcn(x + flow(semantics); flow(x + location)))``.

    The location does not enter the input of the convolution: its flow makes the offsets and the
    modulation, together with ``x`` as it was before the semantics were added. Without a location
    flow, ``x`` alone makes them.

    Args:
        channels: C.
        location: whether the location enters the offsets.
        semantics: whether the stuff-thing flow enters.
    """

    def __init__(self, channels: int, *, location: bool = False, semantics: bool = False):
        super().__init__()
        self.location = location
        self.conv = ModulatedDeformConv(channels, channels, 3, padding=1)
        nn.init.normal_(self.conv.weight, std=0.01)
        self.location_flow = conv3x3(channels, self.conv.num_offset_channels)
        self.semantic_flow = conv3x3(channels, channels) if semantics else None

    def forward(self, x: Tensor, location: Tensor | None, semantics: Tensor | None) -> Tensor:
        """As :meth:`Stage.forward`."""
        offsets = self.location_flow(x + location if self.location else x)
        if self.semantic_flow is not None:
            x = x + self.semantic_flow(semantics)
        return F.relu(self.conv(x, offsets))


class Subnetworks(nn.Module):
    """The parallel sub-networks between the FPN and the heads, weights shared over the levels.

    Stages are aligned at their end: stage j of n takes the location of stage 4 - n + j, so that
    thing_1 takes reg_4. The stuff-thing flow enters the last thing stage.

    Args:
        channels: C.
        num_stages: the stages of each of ``cls``, ``reg``, ``stuff`` and ``thing``, 0 to 4.
        flows: names "source_target": ``reg_cls``, ``reg_stuff``, ``reg_thing``, ``cls_reg``,
            ``cls_stuff``, ``cls_thing``, ``stuff_thing``.
        deform_on: the tasks whose stages are deformable, eq. (4).
        tasks: the sub-networks that exist, ``cls`` and ``reg`` among them. A flow from or to one
            that does not exist is left out.
        init: how the weights of plain stages and flows start: "normal" as in RetinaNet, N(0, 0.01),
            or "msra", which keeps the scale of the features whatever C is.
        checkpoint: in training, keep P_i only and compute the rest again for the gradients.

    Raises:
        ValueError: a task, flow or number of stages that does not exist, or flows whose sources
            contradict each other.
    """

    @configurable
    def __init__(
        self,
        channels: int,
        *,
        num_stages: Mapping[str, int],
        flows: Sequence[str],
        deform_on: Sequence[str] = (),
        tasks: Sequence[str] = TASKS,
        init: str = "normal",
        checkpoint: bool = False,
    ):
        super().__init__()
        _check_arguments(num_stages, flows, deform_on, tasks)
        if init not in ("normal", "msra"):
            raise ValueError(f"The sub-networks start as 'normal' or 'msra', not {init!r}.")
        self.checkpoint = checkpoint
        ends = [tuple(flow.split("_")) for flow in flows]
        ends = [(source, target) for source, target in ends if {source, target} <= set(tasks)]
        self.location_source = {target: source for source, target in ends if source != "stuff"}
        # A source is computed before its targets.
        order = (
            ("cls", "reg", "stuff", "thing")
            if "cls_reg" in flows
            else ("reg", "cls", "stuff", "thing")
        )
        self.order = [task for task in order if task in tasks]
        for task in self.order:
            self.add_module(
                task,
                _build_subnet(
                    channels,
                    num_stages[task],
                    location=task in self.location_source,
                    semantics=("stuff", task) in ends,
                    deformable=task in deform_on,
                ),
            )
        if init == "msra":
            for stage in self.modules():
                if isinstance(stage, Stage):
                    stage.apply(_fill_msra)

    @classmethod
    def from_config(cls, cfg, channels: int) -> dict:
        """``channels``: of the FPN."""
        keys = cfg.MODEL.SPATIALFLOW
        branches = {"cls": True, "reg": True, "stuff": keys.STUFF_ON, "thing": keys.THING_ON}
        return {
            "channels": channels,
            "num_stages": {task: keys.NUM_STAGES[task.upper()] for task in TASKS},
            "flows": keys.FLOWS,
            "deform_on": keys.DEFORM_ON,
            "tasks": [task for task, on in branches.items() if on],
            "init": keys.SUBNET_INIT,
            "checkpoint": keys.CHECKPOINT_SUBNETS,
        }

    def forward(self, pyramid: Sequence[Tensor]) -> SubnetFeatures:
        """Run the sub-networks on P3 to P7, each (N, C, H_i, W_i)."""
        features: dict[str, list[Tensor]] = {task: [] for task in TASKS}
        run = self.forward_level
        if self.checkpoint and self.training:
            run = partial(checkpoint, self.forward_level, use_reentrant=False)
        for level, p in enumerate(pyramid):
            for task, feature in run(p, level < SEGMENTATION_LEVELS).items():
                features[task].append(feature)
        return SubnetFeatures(**features)

    def forward_level(self, p: Tensor, segmentation: bool) -> dict[str, Tensor]:
        """The last feature of every task on one level.

        Args:
            p: P_i, (N, C, H_i, W_i).
            segmentation: whether the level feeds things and stuff.
        """
        stages: dict[str, list[Tensor]] = {}
        for task in self.order:
            if segmentation or task in ("cls", "reg"):
                stages[task] = self._run(task, p, stages)
        return {task: outputs[-1] for task, outputs in stages.items()}

    def _run(self, task: str, p: Tensor, stages: Mapping[str, list[Tensor]]) -> list[Tensor]:
        """The outputs of all stages of ``task``, stage 0, which is P_i, first."""
        subnet = getattr(self, task)
        source = stages.get(self.location_source.get(task))
        semantics = stages["stuff"][-1] if task == "thing" and "stuff" in stages else None
        outputs = [p]
        for stages_left, stage in zip(reversed(range(len(subnet))), subnet, strict=True):
            location = source and source[max(0, len(source) - 1 - stages_left)]
            outputs.append(stage(outputs[-1], location, semantics))
        return outputs


def _fill_msra(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        weight_init.c2_msra_fill(module)


def _build_subnet(
    channels: int, num_stages: int, *, location: bool, semantics: bool, deformable: bool
) -> nn.ModuleList:
    if num_stages == 0:
        return nn.ModuleList([Stage(channels, location=location, semantics=semantics, conv=False)])
    stage = DeformableStage if deformable else Stage
    return nn.ModuleList(
        stage(channels, location=location, semantics=semantics and j == num_stages)
        for j in range(1, num_stages + 1)
    )


def _check_arguments(
    num_stages: Mapping[str, int],
    flows: Sequence[str],
    deform_on: Sequence[str],
    tasks: Sequence[str],
) -> None:
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ValueError(f"There is no task {unknown[0]!r}; choose among {', '.join(TASKS)}.")
    if not {"cls", "reg"} <= set(tasks):
        raise ValueError(f"The tasks are {list(tasks)}; cls and reg must be among them.")
    for task in TASKS:
        if not 0 <= num_stages[task] <= MAX_STAGES:
            raise ValueError(f"{task} has {num_stages[task]} stages; give 0 to {MAX_STAGES}.")
    locations = [f"{source}_{t}" for source in ("reg", "cls") for t in TASKS if t != source]
    known = [*locations, "stuff_thing"]
    for flow in flows:
        if flow not in known:
            raise ValueError(f"There is no flow {flow!r}; choose among {', '.join(known)}.")
    if len({flow.split("_")[0] for flow in flows} - {"stuff"}) > 1:
        raise ValueError(f"The location comes from reg or from cls, not from both: {list(flows)}.")
    for task in deform_on:
        if task not in ("cls", "stuff", "thing"):
            raise ValueError(f"{task!r} cannot be deformable; choose among cls, stuff, thing.")
