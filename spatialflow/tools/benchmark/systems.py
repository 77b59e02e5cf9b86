"""``--systems``: parameters, multiply-adds, time and memory of several models on one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spatialflow.modeling.panoptic_model import PanopticModel

from .calibrate import calibrate
from .floors import count
from .measure import infer
from .subjects import build, make_image
from .timing import Summary, alternate, peak_memory

SYSTEMS = {
    "SpatialFlow": "COCO/spatialflow_R_50_20e.yaml",
    "Panoptic FPN": "panoptic_fpn/panoptic_fpn_R_50.yaml",
    "HTC": "HTC/htc_panoptic_R_50_20e.yaml",
    "SPINet": "SPINet/spinet_R_50.yaml",
    "JSIS-Net": "JSIS-Net/jsis_net_R_50.yaml",
}
"""The papers' systems with a ResNet-50."""


def systems_of(configs: Sequence[str]) -> dict[str, str]:
    """Configs by name: the given ones by their file's, or else :data:`SYSTEMS`."""
    return {Path(config).stem: config for config in configs} or SYSTEMS


def compare_systems(
    configs: Mapping[str, str], height: int, device: str, runs: int
) -> list[dict[str, Any]]:
    """A row for each model, all with the same work after their dense step.

    Args:
        configs: config files, or names in the model zoo, by name.
        height: height of the image in pixels.
        device: device of the models.
        runs: number of timed runs of each model.

    Returns:
        ``name``, ``height``, ``width``, ``parameters``, multiply-adds of the dense step by fvcore
        (``dense_multiply_adds``) and of all from image to map (``multiply_adds``), the fields of
        :class:`Summary` in seconds, ``peak_memory`` in bytes, and what ``calibrate`` found.
    """
    image = make_image(height)
    models = {name: build(config, device).panoptic_model for name, config in configs.items()}
    found = {name: calibrate(model, image) for name, model in models.items()}
    calls = {name: partial(infer, model, [image]) for name, model in models.items()}
    times = alternate(calls, device, runs, warm_up=1)
    return [
        {
            "name": name,
            "height": height,
            "width": image["image"].shape[2],
            "parameters": sum(p.numel() for p in model.parameters()),
            "dense_multiply_adds": dense_multiply_adds(model, image),
            "multiply_adds": count(calls[name]).multiply_adds,
            **vars(Summary.of(times[name])),
            "peak_memory": peak_memory(calls[name], device),
            **found[name],
        }
        for name, model in models.items()
    ]


class _Dense(nn.Module):
    """The dense step as a module that gives plain tensors, which a trace asks for."""

    def __init__(self, model: PanopticModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for x in tree_leaves(self.model.dense(images)) if isinstance(x, Tensor))


@torch.no_grad()
def dense_multiply_adds(model: PanopticModel, image: dict) -> int:
    """Multiply-adds of :meth:`PanopticModel.dense` on an image, by fvcore.

    Deformable convolutions count for their offsets alone.
    """
    analysis = FlopCountAnalysis(_Dense(model), model.preprocess_image([image]).tensor)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(analysis.total())
