"""ONNX files: a traced graph behind the padding of its picture."""

from __future__ import annotations

from typing import Any

import torch
from onnx import ModelProto, parser
from spatialflow_runtime.metadata import METADATA_KEY, Metadata
from torch.export import ExportedProgram

from .graph import DenseGraph, Graph

OPSET = 19  # DeformConv is in it, and GridSample, which runtimes read differently, is not yet

PADDING = """
picture (uint8[input_height, input_width, 3] image, int64[2] output_size)
    => (uint8[H, W, 3] padded, int64[h] input_rows, int64[w] input_columns,
        int64[height] rows, int64[width] columns)
{
    picture_0 = Constant <value_int: int = 0> ()
    picture_1 = Constant <value_int: int = 1> ()
    picture_zero = Constant <value_ints: ints = [0]> ()
    picture_unit = Constant <value_ints: ints = [UNIT]> ()
    picture_sides = Shape <start: int = 0, end: int = 2> (image)
    picture_over = Mod (picture_sides, picture_unit)
    picture_missing = Sub (picture_unit, picture_over)
    picture_ends = Mod (picture_missing, picture_unit)
    picture_begins = Constant <value_ints: ints = [0, 0, 0]> ()
    picture_pads = Concat <axis: int = 0> (picture_begins, picture_ends, picture_zero)
    padded = Pad (image, picture_pads)
    picture_h = Gather <axis: int = 0> (picture_sides, picture_0)
    picture_w = Gather <axis: int = 0> (picture_sides, picture_1)
    picture_height = Gather <axis: int = 0> (output_size, picture_0)
    picture_width = Gather <axis: int = 0> (output_size, picture_1)
    input_rows = Range (picture_0, picture_h, picture_1)
    input_columns = Range (picture_0, picture_w, picture_1)
    rows = Range (picture_0, picture_height, picture_1)
    columns = Range (picture_0, picture_width, picture_1)
}
"""
"""Makes the inputs of :class:`spatialflow.export.graph.PictureGraph` from those of a file."""


def as_onnx(program: ExportedProgram, graph: Graph, metadata: Metadata) -> ModelProto:
    """A traced graph as an ONNX model.

    Its inputs are ``image`` (h, w, 3) uint8 in RGB order, ``output_size`` (2,) int64 and
    ``settings``; with ``stop`` "dense" they are those of the graph.

    Args:
        program: the graph, traced.
        graph: the graph.
        metadata: what the file says of itself.
    """
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(graph.input_names),
        output_names=graph.output_names,
        verbose=False,
    )
    assert exported is not None
    model = exported.model_proto
    if not isinstance(graph, DenseGraph):
        _pad_the_picture(model, graph.system.model.size_divisibility)
    _describe(model, metadata)
    return model


def _pad_the_picture(model: ModelProto, unit: int) -> None:
    """Put :data:`PADDING` before the graph of a model, in place."""
    before = parser.parse_graph(PADDING.replace("UNIT", str(unit)))
    made = {output.name for output in before.output}
    nodes = [*before.node, *model.graph.node]
    inputs = [*before.input, *(x for x in model.graph.input if x.name not in made)]
    for old, new in ((model.graph.node, nodes), (model.graph.input, inputs)):
        kept: list[Any] = [type(item).FromString(item.SerializeToString()) for item in new]
        del old[:]
        old.extend(kept)


def _describe(model: ModelProto, metadata: Metadata) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.as_json()
