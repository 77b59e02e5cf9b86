"""8 bits by onnxruntime's own static quantisation, with the user's pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from spatialflow_runtime.metadata import Metadata
from spatialflow_runtime.resize import resize

from spatialflow.data.mapper import read_image

QUANTISED = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
"""Operators, outside loops, that run in 8 bits."""


class Pictures(CalibrationDataReader):
    """The inputs of a file for pictures, as the training pipeline resizes them.

    Args:
        metadata: of the file.
        files: pictures.
    """

    def __init__(self, metadata: Metadata, files: Sequence[Path]):
        self._inputs = self._read(metadata, files)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The inputs for the next picture; None after the last one."""
        return next(self._inputs, None)

    @staticmethod
    def _read(metadata: Metadata, files: Sequence[Path]) -> Iterator[dict[str, np.ndarray]]:
        settings = np.array(list(metadata.settings.values()), dtype=np.float32)
        for file in files:
            image = read_image(str(file), "RGB")
            size = np.array(image.shape[:2], dtype=np.int64)
            resized = resize(image, metadata.resize)
            yield {"image": resized, "output_size": size, "settings": settings}


def quantize(model: ModelProto, metadata: Metadata, files: Sequence[Path]) -> ModelProto:
    """A model whose convolutions and matrix products take 8 bits.

    The ranges of activations are those of the pictures; weights have a scale for each channel.

    Args:
        model: from :func:`spatialflow.export.onnx_file.as_onnx`.
        metadata: of the model.
        files: pictures like those the model is for; some dozens are enough.
    """
    model = with_distinct_biases(model)
    with tempfile.TemporaryDirectory() as folder:
        path, quantised = Path(folder, "float.onnx"), Path(folder, "8bit.onnx")
        onnx.save(model, path)
        quantize_static(
            str(path),
            str(quantised),
            Pictures(metadata, files),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=without_constant_weights(model),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        result = onnx.load(quantised)
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    return result


def without_constant_weights(model: ModelProto) -> list[str]:
    """Names of the operators whose weights are computed in the graph.

    They are the convolutions of P6 and P7 that use a part of a wider one, and take little time;
    OpenVINO does not read them in 8 bits.
    """
    constant = {weights.name for weights in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in QUANTISED and node.input[1] not in constant
    ]


def with_distinct_biases(model: ModelProto) -> ModelProto:
    """A copy in which no name of a bias is the beginning of another tensor's name.

    onnxruntime makes copies of biases that several operators share, one for each level of the
    pyramid, and names them by appending a number, whether or not that name is taken.
    """
    renamed = ModelProto()
    renamed.CopyFrom(model)
    weighted = [n for n in renamed.graph.node if n.op_type in QUANTISED and len(n.input) > 2]
    biases = {node.input[2] for node in weighted}
    for weights in renamed.graph.initializer:
        if weights.name in biases:
            weights.name += "_bias_"
    own = {weights.name for weights in renamed.graph.initializer}
    for node in renamed.graph.node:
        for i, name in enumerate(node.input):
            if name in biases and f"{name}_bias_" in own:
                node.input[i] = f"{name}_bias_"
    return renamed
