#!/usr/bin/env python
"""Measure this project on a machine with CUDA, in parts of under nine minutes each.

    python tools/measure.py --out measured --camvid datasets/camvid_panoptic
    python tools/measure.py --out measured --part speed-800 merges

Each part writes NAME.json into the folder; measurements.json and measurements.md are made anew from
all parts that are there. A part that fails is reported and the others go on; it can be run again.
It needs no network. With --quick it tries every part on small models, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure_parts import (
    CAMVID_CONFIGS,
    Options,
    Rows,
    batches,
    camvid,
    cuda_tests,
    environment,
    launches,
    merges,
    parity,
    speed,
    steps,
    systems,
    training,
    tta,
)

from spatialflow.tools.benchmark import subjects
from spatialflow.utils.text import table

QUICK_DETECTIONS = 20
"""Detections of a model on small images."""

PARTS: dict[str, Callable[[Options], Rows]] = {
    "environment": environment,
    "tests": cuda_tests,
    "parity": parity,
    **{f"speed-{height}": partial(speed, height=height) for height in (800, 600, 400)},
    "batches": batches,
    "steps": steps,
    "merges": merges,
    "launches": launches,
    "training": training,
    "systems": systems,
    "tta": tta,
    **{f"camvid-{model}": partial(camvid, model=model) for model in CAMVID_CONFIGS},
}


def main(arguments: list[str] | None = None) -> int:
    """Command line; the number of parts that failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=f"{[*PARTS]}"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small models and few runs")
    parser.add_argument("--camvid", type=Path, help="CamVid in COCO panoptic format")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training on CamVid, each")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    options = Options(args.out.resolve(), args.device, args.quick, args.camvid, args.minutes)
    failed = sum("error" in _run(name, options) for name in args.part)
    report(options.out)
    return failed


def _run(name: str, options: Options) -> dict[str, Any]:
    print(f"{name} ...", flush=True)
    result: dict[str, Any] = {"part": name, "device": options.device, "quick": options.quick}
    result["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    start = time.perf_counter()
    detections = QUICK_DETECTIONS if options.quick else subjects.DETECTIONS
    try:
        with patch.object(subjects, "DETECTIONS", detections):
            result["rows"] = PARTS[name](options)
    except Exception as e:  # whatever it is, the other parts are worth having
        traceback.print_exc()
        result["error"] = f"{type(e).__name__}: {e}"
    result["seconds"] = time.perf_counter() - start
    if options.on_cuda:
        torch.cuda.empty_cache()
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{name}: {result.get('error', 'done')}, {result['seconds']:.0f} s", flush=True)
    return result


def report(folder: Path) -> None:
    """Write measurements.json and measurements.md from the parts in a folder."""
    files = [folder / f"{name}.json" for name in PARTS]
    results = [json.loads(file.read_text()) for file in files if file.exists()]
    (folder / "measurements.json").write_text(json.dumps(results, indent=1) + "\n")
    text = "# Measurements\n\nTimes are in seconds, memory in bytes.\n"
    (folder / "measurements.md").write_text(text + "".join(map(_section, results)))


def _section(result: dict[str, Any]) -> str:
    quick = ", quick" if result["quick"] else ""
    head = f"\n## {result['part']}\n\n{result['date']}, {result['device']}{quick}, "
    head += f"{result['seconds']:.0f} s\n\n"
    if "error" in result:
        return f"{head}Failed: {result['error']}\n"
    columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
    if len(result["rows"]) == 1:  # a tall table is easier to read than a wide one
        lines = [[key, _cell(value)] for key, value in result["rows"][0].items()]
        return f"{head}{table(lines, ['', ''], left=2)}\n"
    lines = [[_cell(row.get(key, "")) for key in columns] for row in result["rows"]]
    return f"{head}{table(lines, columns, left=1)}\n"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
