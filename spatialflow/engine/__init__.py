"""Setting up, launching, training and evaluating."""

from .launch import launch
from .setup import argument_parser, read_config, setup
from .trainer import Trainer

__all__ = ["Trainer", "argument_parser", "launch", "read_config", "setup"]
