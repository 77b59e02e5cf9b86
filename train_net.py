#!/usr/bin/env python
"""Train or evaluate SpatialFlow with Detectron2's arguments; the same as ``spatialflow train``."""

from spatialflow.cli import run_command

if __name__ == "__main__":
    run_command("train", prog="train_net.py")
