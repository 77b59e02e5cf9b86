"""The end of a run: one index of all shards, so that the other commands read the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spatialflow.saved.predictions import PREDICTIONS_JSON
from spatialflow.utils.files import atomic_write, read_json

from .manifest import Manifest
from .shard import read_shard, shard_folder

ERRORS = "errors.jsonl"
"""Written last: with it a run is complete."""


def merge(manifest: Manifest, output_format: str) -> None:
    """Write the index of a folder whose shards are all there, in the order of the plan.

    Nothing but one shard is held in memory. Of formats other than COCO's there is no index; their
    files are read one by one.

    Raises:
        FileNotFoundError, ValueError, UserError: a shard is missing, damaged or of another plan.
        OSError: a file cannot be written.
    """
    folder = manifest.folder
    if (folder / ERRORS).exists():
        return
    if output_format == "coco":
        with atomic_write(str(folder / PREDICTIONS_JSON), "w") as f:
            for part in _predictions(manifest):
                f.write(part)
    with atomic_write(str(folder / ERRORS), "w") as f:
        for index in range(manifest.shards):
            for error in read_shard(folder, index, manifest.digest).errors:
                f.write(json.dumps(error) + "\n")


def _predictions(manifest: Manifest) -> Iterator[str]:
    separator = ""
    for index in range(manifest.shards):
        shard = shard_folder(manifest.folder, index)
        content = read_json(shard / PREDICTIONS_JSON, "Shard")
        if index == 0:
            yield f'{{"categories": {json.dumps(content["categories"])}, "annotations": ['
        for annotation in content["annotations"]:
            yield separator + json.dumps(_below(shard, annotation))
            separator = ", "
    yield "]}"


def _below(shard: Path, annotation: dict[str, Any]) -> dict[str, Any]:
    pngs = Path(shard.name, Path(PREDICTIONS_JSON).stem)
    return {**annotation, "file_name": str(pngs / annotation["file_name"])}
