"""The fast path for inference: ``spatialflow.optimize(model)``.

Legend: N images, C channels, P_i the FPN level i, H x W the size of the padded network input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from spatialflow.modeling.spatialflow import PYRAMID, SpatialFlow
from spatialflow.modeling.subnets import Stage, SubnetFeatures, Subnetworks

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

    Always: batch norms are folded into their convolutions, and the flows that read the same reg
    (or cls) feature are one convolution; both move results by rounding alone. The weights no longer
    have the names of a checkpoint: load and save the model itself.

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
    if can_fuse_flows(parts.subnets):
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

    def stuff_scores(
        self,
        features: DenseOutputs,
        image_sizes: list[tuple[int, int]],
        output_sizes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """See :class:`SpatialFlow`."""
        return [
            self.stuff_head.postprocess(*one)
            for one in zip(features.stuff, image_sizes, output_sizes, strict=True)
        ]

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


def can_fuse_flows(subnets: Subnetworks) -> bool:
    """Whether there are flows from a sub-network of plain stages."""
    source = _source(subnets)
    return source is not None and all(
        isinstance(stage, Stage) and stage.conv is not None for stage in getattr(subnets, source)
    )


def _source(subnets: Subnetworks) -> str | None:
    return next(iter(subnets.location_source.values()), None)


class FusedSubnetworks(Subnetworks):
    """Sub-networks in which all convolutions that read a location feature are one, wider one.

    reg_j is read by stage j + 1 of reg and by the flows to cls, stuff and thing.

    Args:
        subnets: gives the parts, which are changed; see :func:`can_fuse_flows`.
    """

    def __init__(self, subnets: Subnetworks):
        nn.Module.__init__(self)
        self.order = subnets.order
        self.location_source = subnets.location_source
        self.checkpoint = False
        self.source = _source(subnets)
        for task in self.order:
            self.add_module(task, getattr(subnets, task))
        source = getattr(self, self.source)
        # Of each feature of the source: the convolutions that read it, and to which stage of which
        # task each belongs; in the order of the tasks, so that P6 and P7 need the first ones only.
        convs = [[stage.conv] for stage in source] + [[]]
        self.readers: list[list[tuple[str, int]]] = [[(self.source, j)] for j in range(len(source))]
        self.readers.append([])
        self.locations: dict[tuple[str, int], int] = {}
        for task in self.order[1:]:
            stages = getattr(self, task)
            for i, stage in enumerate(stages):
                j = max(0, len(source) - (len(stages) - 1 - i))
                if isinstance(stage, Stage) and stage.location_flow is not None:
                    convs[j].append(stage.location_flow)
                    self.readers[j].append((task, i))
                    stage.location_flow = nn.Identity()
                else:
                    self.locations[task, i] = j
        self.wide = nn.ModuleList(_side_by_side(x) if x else nn.Identity() for x in convs)
        for stage in source:
            stage.conv = None

    def forward_level(self, p: Tensor, segmentation: bool) -> dict[str, Tensor]:
        """See :class:`Subnetworks`."""
        tasks = [task for task in self.order if segmentation or task in ("cls", "reg")]
        features, flows = self._run_source(p, tasks)
        last = {self.source: features[-1]}
        for task in tasks[1:]:
            x = p
            for i, stage in enumerate(getattr(self, task)):
                # A deformable stage reads the location itself.
                location = flows.get((task, i))
                if location is None:
                    location = features[self.locations[task, i]]
                x = stage(x, location, last.get("stuff") if task == "thing" else None)
            last[task] = x
        return last

    def _run_source(
        self, p: Tensor, tasks: Sequence[str]
    ) -> tuple[list[Tensor], dict[tuple[str, int], Tensor]]:
        """The features of all stages of the source, and what the flows make of them."""
        features, flows = [p], {}
        for conv, readers in zip(self.wide, self.readers, strict=True):
            readers = [reader for reader in readers if reader[0] in tasks]
            if not readers:
                continue
            width = len(readers) * p.shape[1]
            wide = F.conv2d(features[-1], conv.weight[:width], conv.bias[:width], padding=1)
            for reader, part in zip(readers, wide.split(p.shape[1], dim=1), strict=True):
                if reader[0] == self.source:
                    features.append(F.relu(part))
                else:
                    flows[reader] = part
        return features, flows


def _side_by_side(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One convolution with the outputs of several 3x3 convolutions, one after the other."""
    first = convs[0]
    wide = nn.utils.skip_init(
        nn.Conv2d, first.in_channels, sum(x.out_channels for x in convs), 3, padding=1
    )
    wide.weight = nn.Parameter(torch.cat([x.weight for x in convs]))
    wide.bias = nn.Parameter(torch.cat([x.bias for x in convs]))
    return wide
