"""A model into a file: the one function that the command calls."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from spatialflow_runtime.metadata import METADATA_KEY

from spatialflow.errors import UsageError, UserError
from spatialflow.inference.predictor import Predictor

from .graph import Stop, build_graph
from .metadata import describe
from .torch_export import trace

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


def export(predictor: Predictor, path: Path, options: Options) -> None:
    """Write the model of a predictor.

    Args:
        predictor: config, classes and model.
        path: the file; OpenVINO's weights get the same name with ``.bin``.
        options: see :class:`Options`.

    Raises:
        UserError: the model or the options cannot be exported, or a package is missing.
    """
    check(path, options)
    graph = build_graph(predictor.model, predictor.cfg.INPUT.FORMAT, options.stop)
    metadata = describe(predictor.cfg, predictor.categories, predictor.model, graph, options.stop)
    text = metadata.as_json()
    program = trace(graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.format == "pt2":
        _save_pt2(program, path, text, options.compile)
        return
    from . import onnx_file

    model = onnx_file.as_onnx(program, graph, text)
    if options.calibration:
        from .quantize import quantize

        model = quantize(
            model, predictor, options.calibration, list(graph.settings.values())
        )
    if options.format == "onnx":
        onnx_file.save(model, path)
        return
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder, "model.onnx")
        onnx_file.save(model, onnx_path)
        _save_openvino(onnx_path, path, text, options.half)


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


def _save_openvino(onnx_path: Path, path: Path, metadata: str, half: bool) -> None:
    import openvino

    model = openvino.convert_model(str(onnx_path))
    model.set_rt_info(metadata, [METADATA_KEY])
    openvino.save_model(model, str(path), compress_to_fp16=half)


def _save_pt2(program: Any, path: Path, metadata: str, compile: bool) -> None:
    if not compile:
        torch.export.save(program, path, extra_files={METADATA_KEY: metadata})
        return
    torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(path),
        inductor_configs={"aot_inductor.metadata": {METADATA_KEY: metadata}},
    )
