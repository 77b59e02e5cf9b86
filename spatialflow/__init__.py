"""SpatialFlow: panoptic segmentation with spatial information flows, on Detectron2.

What stands in ``__all__`` is imported when it is first used, and with it ``spatialflow.modeling``,
which registers the model with Detectron2. So ``import spatialflow`` alone needs neither, and
``spatialflow doctor`` can run where something is missing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from .utils.lazy import lazy_names

__version__ = "0.1.0"

_HOMES = {
    "add_spatialflow_config": "config",
    "load_config": "config",
    "optimize": "inference.optimized",
    "Predictor": "inference.predictor",
}

__all__ = sorted(_HOMES)


def _prepare(name: str) -> None:
    if find_spec("detectron2") is None:
        raise ImportError(
            f"spatialflow.{name} needs Detectron2, which is not installed for this Python: run "
            "`make install` in SpatialFlow's repository and use the Python of its .venv. "
            "`spatialflow doctor` tells what else is missing."
        )
    import_module("spatialflow.modeling")


__getattr__, __dir__ = lazy_names(__name__, _HOMES, _prepare)
