"""Panoptic predictions on disk, in COCO's results format: a JSON, and a folder of PNGs.

Everything that can be checked without opening a PNG is checked while reading.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from spatialflow.data.categories import Categories
from spatialflow.data.coco_panoptic import is_segment_id, read_panoptic_json
from spatialflow.data.file_names import file_below, is_file_below, outside
from spatialflow.data.shards import is_sharded
from spatialflow.data.targets import rgb_of_ids
from spatialflow.utils.files import read_json, write_image, write_json

PREDICTIONS = "panoptic_predictions"
PREDICTIONS_JSON = f"{PREDICTIONS}.json"
SAVE_FIRST = "evaluate with TEST.SAVE_PREDICTIONS True first"

_FIELDS: dict[str, tuple[type, ...]] = {
    "image_id": (int, str),
    "file_name": (str,),
    "segments_info": (list,),
}
_SEGMENT_KEYS = ("id", "category_id", "isthing", "area", "score")


@dataclass(frozen=True)
class PanopticFolder:
    """A panoptic JSON and the folder of its PNGs; by default the JSON's name without ".json"."""

    json: str
    root: str = ""

    def __post_init__(self) -> None:
        if not self.root:
            object.__setattr__(self, "root", os.path.splitext(self.json)[0])
        if not is_sharded(self.root) and not os.path.isdir(self.root):
            raise FileNotFoundError(f"Folder {self.root} with the PNGs of {self.json} not found.")

    @classmethod
    def of_evaluation(cls, folder: str) -> PanopticFolder:
        """What an evaluation with TEST.SAVE_PREDICTIONS wrote into a folder."""
        return cls(os.path.join(folder, PREDICTIONS_JSON))

    def png(self, annotation: Mapping) -> str:
        """Path of the PNG that an entry of ``annotations`` names."""
        return file_below(self.root, annotation["file_name"])


@dataclass(frozen=True)
class ImagePair:
    """An image's entries of ``annotations`` and its PNGs.

    ``predicted`` and ``png`` are None where there is no prediction.
    """

    truth: dict[str, Any]
    truth_png: str
    predicted: dict[str, Any] | None = None
    png: str | None = None


@dataclass(frozen=True)
class Pairs:
    """Ground truth and predictions of a dataset.

    Attributes:
        categories: the dataset's.
        pairs: one an image of the ground truth, in its order.
        images: entries of ``images`` of the ground truth, by id.
        missing: ids of the images without prediction.
        extra: ids of the images that are predicted and not annotated.
    """

    categories: Categories
    pairs: list[ImagePair]
    images: dict[Hashable, dict[str, Any]]
    missing: list[Hashable]
    extra: list[Hashable]


def write_prediction(
    folder: str,
    image_id: Hashable,
    file_name: str,
    id_map: np.ndarray,
    segments: Sequence[Mapping],
) -> dict[str, Any]:
    """Write the PNG of an image.

    Args:
        folder: folder of the evaluation.
        image_id: the image's id.
        file_name: name of the PNG in the folder of PNGs.
        id_map: (H, W) segment ids, 0 for void.
        segments: its segments, with the dataset's category ids.

    Returns:
        The image's entry for :func:`write_predictions_json`.

    Raises:
        ValueError: the file would be outside the folder.
        OSError: it cannot be written.
    """
    path = file_below(os.path.join(folder, PREDICTIONS), file_name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_image(path, rgb_of_ids(id_map)[..., ::-1])
    kept = [{k: s[k] for k in _SEGMENT_KEYS if k in s} for s in segments]
    return {"image_id": image_id, "file_name": file_name, "segments_info": kept}


def write_predictions_json(folder: str, categories: list[dict], annotations: list[dict]) -> None:
    """Write the JSON of a folder of predictions.

    Args:
        folder: folder of the evaluation.
        categories: categories of the dataset, as in its JSON.
        annotations: results of :func:`write_prediction`, one per image.
    """
    content = {"categories": categories, "annotations": annotations}
    write_json(os.path.join(folder, PREDICTIONS_JSON), content)


def read_predictions_json(path: str) -> dict[str, list[dict[str, Any]]]:
    """Read a JSON in COCO's panoptic results format; :func:`check_segments` is still to be called.

    Returns:
        dict with ``annotations``, one an image with ``image_id``, ``file_name`` and
        ``segments_info``, and ``categories``, empty where the JSON has none.

    Raises:
        FileNotFoundError: the file is not found.
        ValueError: it is no such JSON, an image is predicted twice, or a file name is absolute or
            leads out of its folder.
    """
    content = read_json(path, "Predictions", SAVE_FIRST)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise ValueError(
            f"{path} holds no panoptic results: it needs a list 'annotations' with "
            f"{', '.join(_FIELDS)} for each image."
        )
    seen: set = set()
    for annotation in annotations:
        _check_fields(path, annotation)
        if annotation["image_id"] in seen:
            raise ValueError(
                f"{path}: image {annotation['image_id']!r} is predicted more than once; keep one."
            )
        seen.add(annotation["image_id"])
    return {"annotations": annotations, "categories": content.get("categories", [])}


def read_truth_json(
    path: str, categories: Categories | None = None
) -> tuple[dict[str, Any], Categories]:
    """Read the JSON of a ground truth, and check its segments.

    Args:
        path: path of the panoptic JSON.
        categories: categories of the dataset; None: those of the JSON.

    Returns:
        What :func:`spatialflow.data.read_panoptic_json` returns, and the categories.

    Raises:
        FileNotFoundError: the file is not found.
        ValueError: it is no panoptic JSON, or a segment is damaged or of an unknown category.
    """
    content = read_panoptic_json(path)
    if categories is None:
        try:
            categories = Categories.from_json(content["categories"])
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from e
    known = categories.segment_classes.keys()
    for annotation in content["annotations"]:
        _check_fields(path, annotation)
        check_segments(path, annotation, known)
    return content, categories


def read_pairs(
    predictions: PanopticFolder, truth: PanopticFolder, categories: Categories | None = None
) -> Pairs:
    """Read predictions and ground truth; no PNG is opened.

    Args:
        predictions: JSON with ``annotations`` and the folder of PNGs.
        truth: JSON of the dataset and the folder of PNGs.
        categories: categories of the dataset; None: those of its JSON.

    Raises:
        FileNotFoundError: a JSON is not found.
        ValueError: a JSON is damaged, an image is predicted twice, a file name leads out of its
            folder, or a segment has an unknown category; the message names file and image.
    """
    content, categories = read_truth_json(truth.json, categories)
    results = read_predictions_json(predictions.json)["annotations"]
    predicted = {p["image_id"]: p for p in results}
    known = categories.segment_classes.keys()
    pairs = []
    for annotation in content["annotations"]:
        found = predicted.pop(annotation["image_id"], None)
        png = None
        if found:
            check_segments(predictions.json, found, known)
            png = predictions.png(found)
        pairs.append(ImagePair(annotation, truth.png(annotation), found, png))
    return Pairs(
        categories=categories,
        pairs=pairs,
        images={image["id"]: image for image in content["images"]},
        missing=[p.truth["image_id"] for p in pairs if p.predicted is None],
        extra=list(predicted),
    )


def check_segments(path: str, annotation: Mapping[str, Any], categories: Set[int]) -> None:
    """Check ids, categories and scores of an image's segments.

    Args:
        path: path of the JSON, for the message.
        annotation: one of its annotations.
        categories: ids of the dataset's categories.

    Raises:
        ValueError: an id cannot be a PNG's, a category is unknown, or a score is no number.
    """
    for segment in annotation["segments_info"]:
        where = f"{path}, image {annotation['image_id']!r}"
        if not isinstance(segment, dict) or not is_segment_id(segment.get("id")):
            raise ValueError(f"{where}: a segment has no id from 1 to 2^24 - 1: {segment}"[:500])
        where = f"{where}: segment {segment['id']}"
        category_id = segment.get("category_id")
        if not isinstance(category_id, int) or category_id not in categories:
            raise ValueError(
                f"{where} has category id {category_id!r}; those of the dataset are "
                f"{sorted(categories)}. Write the dataset's ids, not the contiguous ones of a "
                "model."
            )
        if not isinstance(segment.get("score", 0), int | float):
            raise ValueError(f"{where} has a score that is no number: {segment['score']!r}"[:500])


def _check_fields(path: str, annotation: Any) -> None:
    """ValueError unless an entry of ``annotations`` has what it needs."""
    for field, kind in _FIELDS.items():
        if not isinstance(annotation, dict) or field not in annotation:
            raise ValueError(f"{path}: an annotation has no {field!r}: {annotation}"[:500])
        if not isinstance(annotation[field], kind):
            raise ValueError(f"{path}: {field!r} cannot be {annotation[field]!r}"[:500])
    if not is_file_below(annotation["file_name"]):
        raise ValueError(f"{path}: {outside(annotation['file_name'])}.")
