"""Panoptic maps from exported models, with numpy, Pillow and one of onnxruntime and openvino.

from spatialflow_runtime import PanopticModel
model = PanopticModel("model.onnx")
panoptic_map, segments = model(image)["panoptic_seg"]
"""

from .metadata import FORMAT_VERSION, Metadata, ModelFileError
from .model import PanopticModel

__all__ = ["FORMAT_VERSION", "Metadata", "ModelFileError", "PanopticModel"]
__version__ = "0.1.0"
