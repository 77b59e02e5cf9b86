"""What a file says about its model, from config and model."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from detectron2.config import CfgNode
from spatialflow_runtime.metadata import FORMAT_VERSION, Metadata
from torch import nn

import spatialflow
from spatialflow.data import Categories

from .graph import Graph, Stop


def describe(
    cfg: CfgNode, categories: Categories, model: nn.Module, graph: Graph, stop: Stop
) -> Metadata:
    """The metadata of a graph.

    Args:
        cfg: the config of the model.
        categories: its classes.
        model: the model, with the weights as they were loaded.
        graph: what is exported of it.
        stop: the last step of the graph.
    """
    return Metadata(
        format_version=FORMAT_VERSION,
        stop=stop,
        things=[_entry(c) for c in categories.things],
        stuff=[_entry(c) for c in categories.stuff],
        channels=cfg.INPUT.FORMAT,
        pixel_mean=[float(x) for x in graph.system.pixel_mean.flatten()],
        pixel_std=[float(x) for x in graph.system.pixel_std.flatten()],
        resize=resize_rule(cfg),
        size_divisibility=graph.system.model.size_divisibility,
        settings=graph.settings,
        max_detections=graph.system.max_detections,
        weights_sha256=digest_of_weights(model),
        model=cfg.MODEL.META_ARCHITECTURE,
        made_by=f"spatialflow {spatialflow.__version__}",
    )


def resize_rule(cfg: CfgNode) -> dict[str, Any]:
    """How pictures are resized in evaluation, see :class:`spatialflow_runtime.Metadata`."""
    library = cfg.INPUT.RESIZE_WITH
    if len(cfg.INPUT.FIXED_SIZE):
        height, width = cfg.INPUT.FIXED_SIZE
        return {"library": library, "height": height, "width": width}
    if not cfg.INPUT.MIN_SIZE_TEST:
        return {}
    return {
        "library": library,
        "shorter": cfg.INPUT.MIN_SIZE_TEST,
        "longer": cfg.INPUT.MAX_SIZE_TEST,
    }


def digest_of_weights(model: nn.Module) -> str:
    """SHA-256 of names and values of all weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _entry(category: Any) -> dict[str, Any]:
    return {
        "id": category.id,
        "name": category.name,
        "color": list(category.color),
        "isthing": category.isthing,
    }
