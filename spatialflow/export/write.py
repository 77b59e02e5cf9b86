"""A model into a file: the function that the command calls."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from detectron2.config import CfgNode
from spatialflow_runtime.metadata import METADATA_KEY, Metadata
from torch.export import ExportedProgram

from spatialflow.data import Categories
from spatialflow.errors import UsageError, UserError
from spatialflow.modeling.panoptic_model import PanopticModel

from .graph import Graph, Stop, build_graph
from .metadata import describe
from .torch_export import trace

if TYPE_CHECKING:
    from onnx import ModelProto

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
"""Formats, and what their files end in."""
NEEDED = {"onnx": ("onnx", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino"), "pt2": ()}


@dataclass(frozen=True)
class Options:
    """What is written, and how.

    Attributes:
        format: one of :data:`FORMATS`.
        stop: the last step in the file.
        half: weights in half precision, with OpenVINO.
        calibration: pictures for 8 bits; none: float32.
        compile: compile a ``.pt2`` for this machine, see ``torch._inductor``.
    """

    format: str = "onnx"
    stop: Stop = "panoptic"
    half: bool = False
    calibration: Sequence[Path] = ()
    compile: bool = False


@dataclass(frozen=True)
class Traced:
    """A graph, what ``torch.export`` made of it, and what its file says of it."""

    graph: Graph
    program: ExportedProgram
    metadata: Metadata

    @cached_property
    def onnx(self) -> ModelProto:
        """The program as ONNX, made once: PyTorch converts a program with loops a single time."""
        from .onnx_file import as_onnx

        return as_onnx(self.program, self.graph, self.metadata)


def trace_model(
    model: PanopticModel, cfg: CfgNode, categories: Categories, stop: Stop = "panoptic"
) -> Traced:
    """A model up to a step, ready to be written in any format.

    Args:
        model: in evaluation mode; it is not changed.
        cfg: its config.
        categories: its classes.
        stop: the last step of the graph.

    Raises:
        UserError: the model cannot be exported.
    """
    graph = build_graph(model, cfg.INPUT.FORMAT, stop)
    return Traced(graph, trace(graph), describe(cfg, categories, model, graph, stop))


def write(traced: Traced, path: Path, options: Options) -> None:
    """Write a file; OpenVINO's weights get the same name with ``.bin``.

    Args:
        traced: from :func:`trace_model`.
        path: the file.
        options: see :class:`Options`; ``stop`` is that of ``traced``.

    Raises:
        UserError: see :func:`check`.
    """
    check(path, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.format == "pt2":
        _save_pt2(traced, path, options.compile)
        return
    import onnx

    model = traced.onnx
    if options.calibration:
        from .quantize import quantize

        model = quantize(model, traced.metadata, options.calibration)
    if options.format == "onnx":
        onnx.save(model, path)
        return
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder, "model.onnx")
        onnx.save(model, onnx_path)
        _save_openvino(onnx_path, path, traced.metadata, options.half)


def check(path: Path, options: Options) -> None:
    """Raises UserError where options, file and installed packages do not fit together."""
    ending = FORMATS[options.format]
    if path.suffix != ending:
        raise UsageError(f"--output {path}: the format {options.format} ends in {ending}.")
    if options.half and options.format != "openvino":
        raise UsageError("--half is for --format openvino.")
    if options.compile and options.format != "pt2":
        raise UsageError("--compile is for --format pt2.")
    if options.calibration and (options.format == "pt2" or options.stop == "dense"):
        raise UsageError("--calibrate is for --format onnx or openvino, and not --stop dense.")
    needed = NEEDED[options.format] + (("onnxruntime",) if options.calibration else ())
    if missing := [name for name in needed if not find_spec(name)]:
        raise UserError(
            f"--format {options.format} needs {', '.join(missing)}: "
            "pip install 'spatialflow[export]'"
        )


def _save_openvino(onnx_path: Path, path: Path, metadata: Metadata, half: bool) -> None:
    import openvino

    model = openvino.convert_model(str(onnx_path))
    model.set_rt_info(metadata.as_json(), [METADATA_KEY])
    openvino.save_model(model, str(path), compress_to_fp16=half)


def _save_pt2(traced: Traced, path: Path, compile: bool) -> None:
    metadata = {METADATA_KEY: traced.metadata.as_json()}
    if not compile:
        torch.export.save(traced.program, path, extra_files=metadata)
        return
    torch._inductor.aoti_compile_and_package(
        traced.program,
        package_path=str(path),
        inductor_configs={"aot_inductor.metadata": metadata},
    )
