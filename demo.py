#!/usr/bin/env python
"""Panoptic pictures of your pictures; the same as ``spatialflow demo``."""

import sys

from spatialflow.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("demo", prog="demo.py"))
