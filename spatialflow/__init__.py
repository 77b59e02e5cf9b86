"""SpatialFlow: panoptic segmentation with spatial information flows, on Detectron2.

What stands in ``__all__`` is imported when it is first used, and with it ``spatialflow.modeling``,
which registers the model with Detectron2. So ``import spatialflow`` alone needs neither, and
``python -m spatialflow.doctor`` can run where something is missing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

__version__ = "0.1.0"

_HOMES = {
    "add_spatialflow_config": "spatialflow.config",
    "load_config": "spatialflow.config",
    "optimize": "spatialflow.optimized",
    "Predictor": "spatialflow.predictor",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("detectron2") is None:
        raise ImportError(
            f"spatialflow.{name} needs Detectron2, which is not installed for this Python: run "
            "`make install` in SpatialFlow's repository and use the Python of its .venv. "
            "`python -m spatialflow.doctor` tells what else is missing."
        )
    import_module("spatialflow.modeling")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
