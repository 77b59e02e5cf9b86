"""Weights files: read safely, written atomically."""

from .checkpointer import SafeCheckpointer
from .safe import load_tensors

__all__ = ["SafeCheckpointer", "load_tensors"]
