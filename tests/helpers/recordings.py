"""Where the recorded data of the tests lies; tests/recordings/README.md says what it is."""

from __future__ import annotations

import os
from pathlib import Path

RECORDINGS = Path(__file__).resolve().parents[1] / "recordings"

OFFICIAL = Path(os.environ.get("SPATIALFLOW_GOLDEN", RECORDINGS / "official"))
"""Inputs, weights and outputs of the authors' code; SPATIALFLOW_GOLDEN names another folder."""

COCO_SAMPLE = RECORDINGS / "coco_sample"
"""Annotations of two COCO images."""

PAPER_TABLES = RECORDINGS / "paper_tables.json"
"""The numbers of the papers' tables."""
