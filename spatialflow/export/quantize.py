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

from spatialflow.data.mapper import read_image
from spatialflow.inference.predictor import Predictor

QUANTISED = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
"""Operators, outside loops, that run in 8 bits."""


class Pictures(CalibrationDataReader):
    """The inputs of a file for pictures, as the training pipeline resizes them.

    Args:
        predictor: reads and resizes.
        files: pictures.
        settings: values of the input ``settings``, or none.
    """

    def __init__(self, predictor: Predictor, files: Sequence[Path], settings: list[float]):
        self._inputs = self._read(predictor, files, settings)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The inputs for the next picture; None after the last one."""
        return next(self._inputs, None)

    @staticmethod
    def _read(
        predictor: Predictor, files: Sequence[Path], settings: list[float]
    ) -> Iterator[dict[str, np.ndarray]]:
        for file in files:
            given = predictor.model_input(read_image(str(file), "BGR"))
            image = given["image"].permute(1, 2, 0).numpy()
            if predictor.cfg.INPUT.FORMAT == "BGR":
                image = image[:, :, ::-1]
            inputs = {
                "image": np.ascontiguousarray(image),
                "output_size": np.array([given["height"], given["width"]]),
            }
            if settings:
                inputs["settings"] = np.array(settings, dtype=np.float32)
            yield inputs


def quantize(
    model: ModelProto, predictor: Predictor, files: Sequence[Path], settings: list[float]
) -> ModelProto:
    """A model whose convolutions and matrix products take 8 bits.

    The ranges of activations are those of the pictures; weights have a scale for each channel.

    Args:
        model: from :func:`spatialflow.export.onnx_file.as_onnx`.
        predictor: the model it was made from.
        files: pictures like those the model is for; some dozens are enough.
        settings: values of the input ``settings``, or none.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, quantised = Path(folder, "float.onnx"), Path(folder, "8bit.onnx")
        onnx.save(model, path)
        quantize_static(
            str(path),
            str(quantised),
            Pictures(predictor, files, settings),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        result = onnx.load(quantised)
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    return result
