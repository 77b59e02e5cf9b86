"""The fast path for inference: ``spatialflow.optimize(model)``.

Legend: N images, C channels, P_i the FPN level i, H x W the size of the padded network input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_map

from spatialflow.modeling.detection import DensePredictions
from spatialflow.modeling.flows import ConvFlow
from spatialflow.modeling.spatialflow import PYRAMID, SpatialFlow
from spatialflow.modeling.subnets import Stage, SubnetFeatures, Subnetworks, run_levels
from spatialflow.modeling.wiring import DETECTION_TASKS, Edge

RECOMPILE_LIMITS = ("recompile_limit", "accumulated_recompile_limit")
OLD_RECOMPILE_LIMITS = ("cache_size_limit", "accumulated_cache_size_limit")  # before torch 2.6


def optimize(
    model: SpatialFlow,
    *,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    compile: bool = False,
    max_shapes: int = 8,
) -> OptimizedSpatialFlow:
    """A copy of a model that gives the same results faster, for inference only.

    Always: batch norms are folded into their convolutions, and the convolutions of stages and flows
    that read the same feature are one; both move results by rounding alone. Flows of another type
    than :class:`ConvFlow` stay as they are. The weights no longer have the names of a checkpoint:
    load and save the model itself.

    Args:
        model: in evaluation or training mode; it is not changed.
        dtype: ``torch.bfloat16`` or ``torch.float16`` runs convolutions and matrix products in
            that precision (autocast); scores, boxes and masks move with it. None: as they are.
        channels_last: the memory layout of images and convolution weights; the result does not
            depend on it but for rounding.
        compile: compiles everything between the image and NMS, and the stuff scores, with
            ``torch.compile``; on CUDA into CUDA graphs. The first image of every new size then
            takes minutes.
        max_shapes: how many input shapes (N, H, W) are compiled; further ones run uncompiled.

    Returns:
        A model with the input, the output and the stages of :class:`SpatialFlow`.
    """
    parts = deepcopy(model)
    fold_batch_norms(parts)
    if not isinstance(parts.subnets, FusedSubnetworks):
        parts.subnets = FusedSubnetworks(parts.subnets)
    fast = OptimizedSpatialFlow(
        parts, dtype=dtype, channels_last=channels_last, compile=compile, max_shapes=max_shapes
    )
    if channels_last:
        fast = fast.to(memory_format=torch.channels_last)
    return fast.to(model.device).eval().requires_grad_(False)


class DenseOutputs(NamedTuple):
    """All that is computed for every cell: what the stages after it read."""

    features: SubnetFeatures
    predictions: DensePredictions
    stuff: Tensor | None


class OptimizedSpatialFlow(SpatialFlow):
    """See :func:`optimize`.

    Args:
        model: gives the parts.
        dtype, channels_last, compile, max_shapes: see :func:`optimize`.
    """

    def __init__(
        self,
        model: SpatialFlow,
        *,
        dtype: torch.dtype | None,
        channels_last: bool,
        compile: bool,
        max_shapes: int,
    ):
        super().__init__(
            backbone=model.backbone,
            subnets=model.subnets,
            detector=model.detector,
            thing_head=model.thing_head,
            stuff_head=model.stuff_head,
            pixel_mean=model.pixel_mean.flatten().tolist(),
            pixel_std=model.pixel_std.flatten().tolist(),
            merge_settings=model.merge_settings,
            panoptic_on=model.panoptic_on,
        )
        self.dtype = dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.max_shapes = max_shapes
        self.compiled_shapes: set[tuple[int, ...]] = set()
        self.cuda_graphs = compile and model.device.type == "cuda"
        mode = "reduce-overhead" if self.cuda_graphs else None
        self._compiled = (
            torch.compile(self.dense, fullgraph=True, dynamic=False, mode=mode) if compile else None
        )

    def losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """There are none.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "An optimized SpatialFlow is for inference; train the model that it was made from."
        )

    def dense(self, images: Tensor) -> DenseOutputs:
        """Everything before NMS, and the stuff scores, of (N, 3, H, W) normalised images."""
        pyramid = self.backbone(images)
        features = self.subnets([pyramid[name] for name in PYRAMID])
        return DenseOutputs(
            features,
            self.detector(features.cls, features.reg),
            None if self.stuff_head is None else self.stuff_head(features.stuff),
        )

    def extract_features(self, images: ImageList) -> DenseOutputs:
        """All dense outputs."""
        tensor = images.tensor.contiguous(memory_format=self.memory_format)
        function = self._function_for(tensor.shape)
        with self._autocast(), self._compiling():
            outputs = function(tensor)
        if function is self._compiled and self.cuda_graphs:
            # The next image is written to the same memory.
            outputs = tree_map(lambda x: x if x is None else x.clone(), outputs)
        return outputs

    def find_candidates(
        self,
        features: DenseOutputs,
        image_sizes: list[tuple[int, int]],
        output_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """See :class:`SpatialFlow`."""
        anchors = self.detector.anchor_generator(features.features.cls)
        return self.detector.find_candidates(
            features.predictions, anchors, image_sizes, output_sizes
        )

    def mask_features(self, features: DenseOutputs) -> DenseOutputs:
        """See :class:`SpatialFlow`."""
        thing = super().mask_features(features.features)
        return DenseOutputs(thing, DensePredictions([], []), None)

    def predict_masks(
        self,
        features: DenseOutputs,
        instances: list[Instances],
        image_sizes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """See :class:`SpatialFlow`."""
        with self._autocast():
            return super().predict_masks(features.features, instances, image_sizes)

    def dense_stuff_scores(self, features: DenseOutputs) -> Tensor:
        """See :class:`SpatialFlow`."""
        return features.stuff

    def _function_for(self, shape: tuple[int, ...]) -> Callable[[Tensor], DenseOutputs]:
        shape = tuple(shape)
        if self._compiled is None:
            return self.dense
        if len(self.compiled_shapes) < self.max_shapes:
            self.compiled_shapes.add(shape)
        return self._compiled if shape in self.compiled_shapes else self.dense

    def _compiling(self) -> AbstractContextManager:
        """Lets torch compile one function for all shapes; its own limit is 8."""
        if self._compiled is None:
            return nullcontext()
        config = torch._dynamo.config
        limits = RECOMPILE_LIMITS if hasattr(config, "recompile_limit") else OLD_RECOMPILE_LIMITS
        return config.patch({k: max(self.max_shapes, getattr(config, k)) for k in limits})

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)


def fold_batch_norms(module: nn.Module) -> None:
    """Fold batch norms, frozen or with running statistics, into Detectron2's convolutions."""
    for conv in module.modules():
        norm = getattr(conv, "norm", None)
        if isinstance(conv, Conv2d) and isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            conv.norm = None


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
        # Those that P6 and P7 have too come first: there the others are cut off.
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

    def forward_level(self, p: Tensor, segmentation: bool) -> dict[str, Tensor]:
        """See :class:`Subnetworks`."""
        tasks = self.subnets.tasks_on(segmentation)
        features = {task: [p] for task in tasks}
        # What the wide convolutions have made for an edge, in place of the feature that it reads.
        made = self._read(_feature_name("", 0), p, tasks)
        for task in tasks:
            for j, stage in enumerate(getattr(self.subnets, task), start=1):
                x = made.get(Edge(task, j - 1, task, j), features[task][-1])
                sources = {
                    edge.source: made.get(edge, features[edge.source][edge.source_stage])
                    for edge in self.subnets.edges_into[task, j]
                    if edge.source in tasks
                }
                x = stage(x, sources)
                features[task].append(x)
                made |= self._read(_feature_name(task, j), x, tasks)
        return {task: outputs[-1] for task, outputs in features.items()}

    def _read(self, name: str, feature: Tensor, tasks: Sequence[str]) -> dict[Edge, Tensor]:
        """What the wide convolution of a feature makes for each of the edges that read it."""
        edges = [edge for edge in self.readers.get(name, ()) if edge.target in tasks]
        if not edges:
            return {}
        conv, channels = self.wide[name], feature.shape[1]
        width = len(edges) * channels
        parts = F.conv2d(feature, conv.weight[:width], conv.bias[:width], padding=1)
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
        stage.flows[edge.source] = _Given()
        return conv


class _Given(nn.Module):
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
    wide.bias = nn.Parameter(torch.cat([x.bias for x in convs]))
    return wide
