"""Weights files: read safely, written atomically."""

from spatialflow.checkpoint.checkpointer import SafeCheckpointer
from spatialflow.checkpoint.safe import load_tensors

__all__ = ["SafeCheckpointer", "load_tensors"]
