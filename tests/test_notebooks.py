"""The notebooks run from the first cell to the last, in plain Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
SHORTER = {"ITERATIONS = 120": "ITERATIONS = 2", "SCENES = 20": "SCENES = 2"}
PRINTED = {"own_data": "PQ-coin", "flows": "without reg -> cls"}
"""A part of what the cells print."""


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook, tmp_path):
    cells = json.loads(notebook.read_text())["cells"]
    assert all(not cell.get("outputs") for cell in cells), "clear the outputs before committing"
    code = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for full, short in SHORTER.items():
        code = code.replace(full, short)
    root = str(notebook.parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert PRINTED[notebook.stem] in done.stdout
