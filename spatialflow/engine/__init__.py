"""Setting up, launching, training and evaluating."""

from .launch import launch
from .optimizer import build_optimizer
from .setup import argument_parser, read_config, setup
from .trainer import Trainer

__all__ = ["Trainer", "argument_parser", "build_optimizer", "launch", "read_config", "setup"]
