"""``spatialflow train`` and ``train_net.py``: training, or evaluation with ``--eval-only``."""

from spatialflow.engine.main import run
from spatialflow.engine.setup import argument_parser

__all__ = ["parser", "run"]


def parser():
    """Detectron2's arguments."""
    return argument_parser("spatialflow train")
