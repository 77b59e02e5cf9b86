"""The fast path for inference: ``spatialflow.optimize(model)``.

Legend: see :mod:`spatialflow.modeling.panoptic_model`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torch.utils._pytree import tree_map

from spatialflow.modeling.panoptic_model import PanopticModel, Sizes, StuffLabels

from .folding import fold_batch_norms

RECOMPILE_LIMITS = ("recompile_limit", "accumulated_recompile_limit")
OLD_RECOMPILE_LIMITS = ("cache_size_limit", "accumulated_cache_size_limit")  # before torch 2.6


def optimize(
    model: PanopticModel,
    *,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    compile: bool = False,
    max_shapes: int = 8,
) -> OptimizedModel:
    """A copy of a model that gives the same results faster, for inference only.

    Always: batch norms are folded into their convolutions, and what the model can fuse is fused
    (in SpatialFlow the convolutions of stages and flows that read the same feature are one); both
    move results by rounding alone. The weights no longer have the names of a checkpoint: load and
    save the model itself.

    Args:
        model: a model in evaluation or training mode; it is not changed.
        dtype: ``torch.bfloat16`` or ``torch.float16`` runs convolutions and matrix products in
            that precision (autocast); scores, boxes and masks move with it. None: as they are.
        channels_last: the memory layout of images and convolution weights; the result does not
            depend on it but for rounding.
        compile: compiles :meth:`PanopticModel.dense` with ``torch.compile``; on CUDA into CUDA
            graphs. The first image of every new size then takes minutes.
        max_shapes: how many input shapes (N, H, W) are compiled; further ones run uncompiled.

    Returns:
        A model with the input, the output and the steps of the given one.
    """
    parts = deepcopy(model)
    fold_batch_norms(parts)
    parts.fuse()
    fast = OptimizedModel(
        parts, dtype=dtype, channels_last=channels_last, compile=compile, max_shapes=max_shapes
    )
    if channels_last:
        fast = fast.to(memory_format=torch.channels_last)
    return fast.to(model.device).eval().requires_grad_(False)


class OptimizedModel(PanopticModel):
    """See :func:`optimize`. The steps are those of ``model``; the dense one runs faster.

    Args:
        model: whose parts are folded and fused.
        dtype, channels_last, compile, max_shapes: see :func:`optimize`.
    """

    def __init__(
        self,
        model: PanopticModel,
        *,
        dtype: torch.dtype | None,
        channels_last: bool,
        compile: bool,
        max_shapes: int,
    ):
        super().__init__()
        self.model = model
        self.predicts_boxes = model.predicts_boxes
        self.predicts_masks, self.predicts_stuff = model.predicts_masks, model.predicts_stuff
        self.nms_thresh, self.merge = model.nms_thresh, model.merge
        self.dtype = dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.max_shapes = max_shapes
        self.compiled_shapes: set[tuple[int, ...]] = set()
        self.cuda_graphs = compile and model.device.type == "cuda"
        mode = "reduce-overhead" if self.cuda_graphs else None
        self._compiled = (
            torch.compile(model.dense, fullgraph=True, dynamic=False, mode=mode)
            if compile
            else None
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def groups(self, batched_inputs: list[dict]) -> list[list[int]]:
        """See :class:`PanopticModel`."""
        return self.model.groups(batched_inputs)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """See :class:`PanopticModel`."""
        return self.model.preprocess_image(batched_inputs)

    def dense(self, images: Tensor) -> Any:
        """See :class:`PanopticModel`."""
        images = images.contiguous(memory_format=self.memory_format)
        function = self._function_for(images.shape)
        with self._autocast(), self._compiling():
            outputs = function(images)
        if function is self._compiled and self.cuda_graphs:
            # The next image is written to the same memory.
            outputs = tree_map(lambda x: x if x is None else x.clone(), outputs)
        return outputs

    def find_candidates(
        self, dense: Any, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Instances]:
        """See :class:`PanopticModel`; a model may have layers here, as region heads are."""
        with self._autocast():
            found = self.model.find_candidates(dense, image_sizes, output_sizes)
        for candidates in found:
            candidates.pred_boxes = Boxes(candidates.pred_boxes.tensor.float())
            candidates.scores = candidates.scores.float()
        return found

    def select(self, candidates: Instances) -> Instances:
        """See :class:`PanopticModel`."""
        return self.model.select(candidates)

    def stuff_scores(self, dense: Any, image_sizes: Sizes, output_sizes: Sizes) -> list[Tensor]:
        """See :class:`PanopticModel`."""
        with self._autocast():
            scores = self.model.stuff_scores(dense, image_sizes, output_sizes)
        return [x.float() for x in scores]

    def stuff_labels(
        self, dense: Any, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[StuffLabels]:
        """See :class:`PanopticModel`."""
        with self._autocast():
            return self.model.stuff_labels(dense, image_sizes, output_sizes)

    def mask_features(self, dense: Any) -> Any:
        """See :class:`PanopticModel`."""
        return self.model.mask_features(dense)

    def predict_masks(
        self, features: Any, instances: list[Instances], image_sizes: Sizes
    ) -> list[Tensor]:
        """See :class:`PanopticModel`."""
        with self._autocast():
            masks = self.model.predict_masks(features, instances, image_sizes)
        return [x.float() for x in masks]

    def attach_masks(self, instances: Instances, masks: Tensor) -> None:
        """See :class:`PanopticModel`."""
        self.model.attach_masks(instances, masks)

    def _function_for(self, shape: tuple[int, ...]) -> Callable[[Tensor], Any]:
        shape = tuple(shape)
        if self._compiled is None:
            return self.model.dense
        if len(self.compiled_shapes) < self.max_shapes:
            self.compiled_shapes.add(shape)
        return self._compiled if shape in self.compiled_shapes else self.model.dense

    def _compiling(self) -> AbstractContextManager:
        """Lets torch compile one function for all shapes; its own limit is 8."""
        if self._compiled is None:
            return nullcontext()
        config = torch._dynamo.config
        limits = RECOMPILE_LIMITS if hasattr(config, "recompile_limit") else OLD_RECOMPILE_LIMITS
        return config.patch({k: max(self.max_shapes, getattr(config, k)) for k in limits})

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
