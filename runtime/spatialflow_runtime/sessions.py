"""Files run by onnxruntime or OpenVINO; each is imported where it is used."""

from __future__ import annotations

import functools
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .metadata import EXPORT_AGAIN, METADATA_KEY, Metadata, ModelFileError, parse_metadata
from .model_file import onnx_metadata

ENGINES = {".onnx": ("openvino", "onnxruntime"), ".xml": ("openvino",)}
"""Which engines run a file of an ending, in the order in which they are looked for."""
PRECISIONS = ("float32", "bfloat16")
Arrays = dict[str, np.ndarray]


class Session(Protocol):
    """A loaded file. Several threads may call :meth:`run`.

    Attributes:
        metadata: what the file says of itself.
    """

    metadata: Metadata

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name, from inputs by name."""


def open_session(
    path: Path, engine: str | None = None, threads: int = 0, precision: str = "float32"
) -> Session:
    """Load a file.

    Args:
        path: an ``.onnx`` file, or the ``.xml`` file of an OpenVINO IR.
        engine: "onnxruntime" or "openvino"; None: what is installed.
        threads: of the engine; 0: as it likes.
        precision: "float32", or "bfloat16" on CPUs that have it, with OpenVINO.

    Raises:
        FileNotFoundError: no such file.
        ModelFileError: it cannot be read, see :class:`ModelFileError`.
        ValueError: an unknown ending, engine or precision.
        ModuleNotFoundError: no engine for it is installed.
    """
    if path.suffix not in ENGINES:
        raise ValueError(f"{path}: a model ends in {' or '.join(ENGINES)}.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"Model file {path} not found.")
    engine = engine or _installed_engine(path)
    if engine not in ENGINES[path.suffix]:
        raise ValueError(
            f"{path} is run by {' or '.join(ENGINES[path.suffix])}, not by {engine!r}."
        )
    if engine == "onnxruntime":
        if precision != "float32":
            raise ValueError("onnxruntime runs float32; bfloat16 is for engine='openvino'.")
        return _OnnxSession(path, threads)
    return _OpenVinoSession(path, threads, precision)


def _installed_engine(path: Path) -> str:
    engines = ENGINES[path.suffix]
    for engine in engines:
        if find_spec(engine):
            return engine
    raise ModuleNotFoundError(f"{path} needs {' or '.join(engines)}: pip install {engines[-1]}")


class _OnnxSession:
    def __init__(self, path: Path, threads: int):
        import onnxruntime

        self.metadata = parse_metadata(onnx_metadata(path).get(METADATA_KEY), str(path))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # errors of its own, without a common base
            raise ModelFileError(_unreadable(path, e)) from e
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._outputs, self._session.run(None, inputs), strict=True))


@functools.cache
def _openvino_core() -> Any:
    """The one of this process: when the last one goes, its plugins are unloaded, whose functions
    a later ``fork`` would still call."""
    import openvino

    return openvino.Core()


class _OpenVinoSession:
    def __init__(self, path: Path, threads: int, precision: str):
        core = _openvino_core()
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads:
            properties["INFERENCE_NUM_THREADS"] = threads
        if path.suffix == ".onnx":
            self.metadata = parse_metadata(onnx_metadata(path).get(METADATA_KEY), str(path))
        try:
            model = core.read_model(str(path))
            if path.suffix == ".xml":
                self.metadata = parse_metadata(_rt_info(model), str(path))
            self._compiled = core.compile_model(model, "CPU", properties)
        except RuntimeError as e:
            raise ModelFileError(_unreadable(path, e)) from e
        self._own = threading.local()  # a request runs one picture at a time

    def run(self, inputs: Arrays) -> Arrays:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        results = self._own.request.infer(inputs, share_inputs=True)
        # Copies: the next picture is written to the same memory.
        return {name: np.array(value) for output, value in results.items() for name in output.names}


def _rt_info(model: Any) -> str | None:
    if not model.has_rt_info([METADATA_KEY]):
        return None
    return str(model.get_rt_info([METADATA_KEY]).astype(str))


def _unreadable(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{path} cannot be loaded; copy it again, or {EXPORT_AGAIN}. The engine says: {reason}"
