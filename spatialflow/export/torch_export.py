"""A graph by ``torch.export``, for pictures of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from .graph import DenseGraph, Graph, example_inputs
from .prepare import MOST_DIVISIBLE

MAX_SIDE = 2**16
"""Longest side of a picture or a result in pixels."""


def trace(graph: Graph) -> ExportedProgram:
    """The exported program of a graph, with height and width of picture and result left open."""
    unit = getattr(graph.system.model, "size_divisibility", MOST_DIVISIBLE)
    blocks = [unit * Dim(name, min=5, max=MAX_SIDE // unit) for name in ("blocks_y", "blocks_x")]
    shapes: Any
    if isinstance(graph, DenseGraph):
        shapes = ({2: blocks[0], 3: blocks[1]},)
    else:
        names = ("input_height", "input_width", "height", "width")
        free = [{0: Dim(name, min=2, max=MAX_SIDE)} for name in names]
        shapes = ({0: blocks[0], 1: blocks[1]}, *free, None)
    with torch.no_grad():
        return torch.export.export(
            graph,
            example_inputs(graph),
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
