"""What an evaluation left in its OUTPUT_DIR: predictions, results, config, log."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog

from spatialflow.data.categories import Categories, Category
from spatialflow.data.coco_panoptic import read_panoptic_json
from spatialflow.data.file_names import file_below, is_file_below, outside
from spatialflow.data.register import find_panoptic_files

_SAVE = "run train_net.py with --eval-only and TEST.SAVE_PREDICTIONS True to write them"
_DATASET = {"name": str, "image_root": str, "panoptic_root": str, "panoptic_json": str}
_ANNOTATION = {"image_id": (int, str), "file_name": str, "segments_info": list}
_SEGMENT = {"id": int, "category_id": int}
_ENVIRONMENT = re.compile(r"Environment info:\n(.*?)(?=\n\[\d\d/\d\d |\Z)", re.S)
_LOG_BYTES = 50_000_000
"""Of a log longer than this, the end is read; evaluations are at the end."""


@dataclass(frozen=True)
class SavedImage:
    """One image, its ground truth and its prediction; segment lists as in the JSON files.

    ``file_name`` and the two PNGs are paths; category ids are the dataset's.
    """

    image_id: Hashable
    file_name: str
    truth_png: str
    truth_segments: list[dict]
    png: str
    segments: list[dict]


@dataclass(frozen=True)
class SavedEvaluation:
    """An evaluation of one dataset.

    Attributes:
        name: of the dataset.
        categories: its classes, things first, each in ascending category id.
        images: those that were evaluated.
        annotated: how many the dataset has.
        date: when the predictions were written.
        results: of ``results.json``, ``{task: {metric: percent, None for not measured}}``; empty
            where there is none.
        config: the text of ``config.yaml``; None where there is none.
        environment: Detectron2's table of versions from the run's log; None where there is none.
        documents: the files that this was read from, whether they are there or not.
    """

    name: str
    categories: list[Category]
    images: list[SavedImage]
    annotated: int
    date: datetime
    results: dict[str, dict[str, float | None]]
    config: str | None
    environment: str | None
    documents: tuple[str | Path, ...]

    @property
    def files(self) -> list[str | Path]:
        """All that a report reads: the documents, images and PNGs."""
        pictures = [p for i in self.images for p in (i.file_name, i.truth_png, i.png)]
        return [*self.documents, *pictures]

    @property
    def weights(self) -> str | None:
        """MODEL.WEIGHTS of the config, where it says so."""
        try:
            return str(yaml.safe_load(self.config or "")["MODEL"]["WEIGHTS"]) or None
        except (yaml.YAMLError, KeyError, TypeError):
            return None


def read_saved(folder: str, dataset: str | None = None) -> SavedEvaluation:
    """Read what an evaluation with TEST.SAVE_PREDICTIONS wrote; pictures are not opened.

    Args:
        folder: the evaluation's OUTPUT_DIR.
        dataset: name of the dataset; needed where there are several.

    Raises:
        FileNotFoundError: the folder, the predictions or the ground truth's JSON is not there.
        ValueError: a file is not what it should be, or there are several datasets and no name.
    """
    home = _find(Path(folder), dataset)
    dataset_json = home / "dataset.json"
    info = _read_json(dataset_json)
    _require(info, _DATASET, dataset_json)
    truth = read_panoptic_json(info["panoptic_json"])
    try:
        categories = Categories.from_json(truth["categories"])
    except ValueError as e:
        raise ValueError(f"{info['panoptic_json']}: {e}") from e
    predictions = home / "panoptic_predictions.json"
    results, config, log = (Path(folder) / n for n in ("results.json", "config.yaml", "log.txt"))
    return SavedEvaluation(
        name=info["name"],
        categories=[*categories.things, *(c for c in categories.stuff if not c.isthing)],
        images=_images(predictions, truth, info),
        annotated=len(truth["annotations"]),
        date=datetime.fromtimestamp(predictions.stat().st_mtime).astimezone(),
        results=_results(results, info["name"]),
        config=_text(config),
        environment=_last_environment(log),
        documents=(dataset_json, info["panoptic_json"], predictions, results, config, log),
    )


def _find(folder: Path, dataset: str | None) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {folder} is not there; give the run's OUTPUT_DIR.")
    saved = sorted(p.parent for p in folder.glob("inference/*/panoptic_predictions.json"))
    if not saved:
        raise FileNotFoundError(
            f"{folder} has no inference/<dataset>/panoptic_predictions.json, so there are no saved "
            f"predictions to report on; {_SAVE}."
        )
    names = [p.name for p in saved]
    if dataset is None and len(names) > 1:
        raise ValueError(f"{folder} has several datasets; choose with --dataset: {names}.")
    if dataset is not None and dataset not in names:
        raise FileNotFoundError(f"{folder} has no saved predictions of {dataset}, only of {names}.")
    return saved[names.index(dataset) if dataset else 0]


def _images(predictions: Path, truth: dict, info: dict[str, str]) -> list[SavedImage]:
    content = _read_json(predictions)
    _require(content, {"annotations": list}, predictions)
    if not content["annotations"]:
        raise ValueError(f"{predictions} has no annotations: nothing was evaluated.")
    known = info["name"] in DatasetCatalog
    image_file = find_panoptic_files(info["name"]).image_file if known else itemgetter("file_name")
    files = {image["id"]: image_file(image) for image in truth["images"]}
    annotated = {a["image_id"]: a for a in truth["annotations"]}
    images = []
    for entry in content["annotations"]:
        _require_annotation(entry, predictions)
        image_id = entry["image_id"]
        if image_id not in annotated or image_id not in files:
            raise ValueError(
                f"{predictions} has a prediction for image {image_id!r}, which "
                f"{info['panoptic_json']} does not annotate."
            )
        annotation = annotated[image_id]
        _require_annotation(annotation, info["panoptic_json"])
        images.append(
            SavedImage(
                image_id=image_id,
                file_name=file_below(info["image_root"], files[image_id]),
                truth_png=os.path.join(info["panoptic_root"], annotation["file_name"]),
                truth_segments=annotation["segments_info"],
                png=str(predictions.with_suffix("") / entry["file_name"]),
                segments=entry["segments_info"],
            )
        )
    return images


def _results(path: Path, name: str) -> dict[str, dict[str, float | None]]:
    results = _read_json(path).get(name, {}) if path.exists() else {}
    for task in results:
        _require(results, {task: dict}, path)
        _require(results[task], dict.fromkeys(results[task], (int, float, type(None))), path)
    return results


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise FileNotFoundError(f"{path} is not there; {_SAVE}.") from e
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is not valid JSON: {e}") from e
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} where an object is expected.")
    return content


def _require_annotation(annotation: Any, path: str | Path) -> None:
    _require(annotation, _ANNOTATION, path)
    if not is_file_below(annotation["file_name"]):
        raise ValueError(f"{path}: {outside(annotation['file_name'])}.")
    for segment in annotation["segments_info"]:
        _require(segment, _SEGMENT, path)
        if "score" in segment:
            _require(segment, {"score": (int, float)}, path)


def _require(entry: Any, fields: Mapping[str, type | tuple[type, ...]], path: str | Path) -> None:
    for key, kind in fields.items():
        if not isinstance(entry, dict) or key not in entry:
            raise ValueError(f"{path}: there is no {key!r} in {entry}"[:500])
        if not isinstance(entry[key], kind):
            raise ValueError(f"{path}: {key!r} cannot be {entry[key]!r}"[:500])


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None


def _last_environment(log: Path) -> str | None:
    if not log.exists():
        return None
    with log.open("rb") as f:
        f.seek(max(0, log.stat().st_size - _LOG_BYTES))
        text = f.read().decode(errors="replace")
    found = _ENVIRONMENT.findall(text)
    return found[-1].strip() if found else None
