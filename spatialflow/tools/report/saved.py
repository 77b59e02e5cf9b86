"""What an evaluation left in its OUTPUT_DIR: predictions, results, config, log."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path

import yaml
from detectron2.data import DatasetCatalog

from spatialflow.data.categories import Category
from spatialflow.data.file_names import file_below
from spatialflow.data.register import find_panoptic_files
from spatialflow.saved.dataset import DATASET_JSON, SavedDataset
from spatialflow.saved.predictions import PREDICTIONS_JSON, Pairs, PanopticFolder, read_pairs
from spatialflow.utils.files import read_json

_SAVE = "run train_net.py with --eval-only and TEST.SAVE_PREDICTIONS True to write them"
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
        name: name of the dataset.
        categories: its classes, things first, each in ascending category id.
        images: those that were evaluated.
        annotated: how many the dataset has.
        date: when the predictions were written.
        results: content of ``results.json``, ``{task: {metric: percent or None}}``; empty without
            the file. None: not measured.
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
        FileNotFoundError: the folder, the predictions or the ground truth's JSON is missing.
        ValueError: a file is not what it should be, or there are several datasets and no name.
    """
    home = _find(Path(folder), dataset)
    dataset_json = home / DATASET_JSON
    described = SavedDataset.open(str(dataset_json))
    predictions = PanopticFolder.of_evaluation(str(home))
    truth = described.truth
    pairs = read_pairs(predictions, truth)
    categories = pairs.categories
    results, config, log = (Path(folder) / n for n in ("results.json", "config.yaml", "log.txt"))
    return SavedEvaluation(
        name=described.name,
        categories=[*categories.things, *(c for c in categories.stuff if not c.isthing)],
        images=_images(described, predictions.json, pairs),
        annotated=len(pairs.pairs),
        date=datetime.fromtimestamp(os.stat(predictions.json).st_mtime).astimezone(),
        results=_results(results, described.name),
        config=_text(config),
        environment=_last_environment(log),
        documents=(dataset_json, truth.json, predictions.json, results, config, log),
    )


def _find(folder: Path, dataset: str | None) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"Folder {folder} not found; give the run's OUTPUT_DIR.")
    if (folder / PREDICTIONS_JSON).exists():  # of `spatialflow predict`
        return folder
    saved = sorted(p.parent for p in folder.glob(f"inference/*/{PREDICTIONS_JSON}"))
    if not saved:
        raise FileNotFoundError(
            f"{folder} has no inference/<dataset>/{PREDICTIONS_JSON}, so there are no saved "
            f"predictions to report on; {_SAVE}."
        )
    names = [p.name for p in saved]
    if dataset is None and len(names) > 1:
        raise ValueError(f"{folder} has several datasets; choose with --dataset: {names}.")
    if dataset is not None and dataset not in names:
        raise FileNotFoundError(f"{folder} has no saved predictions of {dataset}, only of {names}.")
    return saved[names.index(dataset) if dataset else 0]


def _images(dataset: SavedDataset, predictions_json: str, pairs: Pairs) -> list[SavedImage]:
    predicted = [pair for pair in pairs.pairs if pair.predicted]
    unknown = pairs.extra + [
        i for pair in predicted if (i := pair.truth["image_id"]) not in pairs.images
    ]
    if unknown:
        raise ValueError(
            f"{predictions_json} has a prediction for image {unknown[0]!r}, which "
            f"{dataset.panoptic_json} does not annotate."
        )
    if not predicted:
        raise ValueError(f"{predictions_json} has no annotations: nothing was evaluated.")
    known = dataset.name in DatasetCatalog
    image_file = find_panoptic_files(dataset.name).image_file if known else itemgetter("file_name")
    images = []
    for pair in predicted:
        assert pair.predicted is not None and pair.png is not None
        image_id = pair.truth["image_id"]
        images.append(
            SavedImage(
                image_id=image_id,
                file_name=file_below(dataset.image_root, image_file(pairs.images[image_id])),
                truth_png=pair.truth_png,
                truth_segments=pair.truth["segments_info"],
                png=pair.png,
                segments=pair.predicted["segments_info"],
            )
        )
    return images


def _results(path: Path, name: str) -> dict[str, dict[str, float | None]]:
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} where an object is expected.")
    results = content.get(name, {})
    for task, metrics in results.items():
        if not isinstance(metrics, dict):
            raise ValueError(f"{path}: {task!r} cannot be {metrics!r}"[:500])
        for metric, value in metrics.items():
            if not isinstance(value, int | float | None):
                raise ValueError(f"{path}: {metric!r} cannot be {value!r}"[:500])
    return results


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
