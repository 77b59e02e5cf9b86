"""Setting up, launching, training and evaluating."""

from spatialflow.engine.launch import launch
from spatialflow.engine.setup import argument_parser, read_config, setup
from spatialflow.engine.trainer import Trainer

__all__ = ["Trainer", "argument_parser", "launch", "read_config", "setup"]
