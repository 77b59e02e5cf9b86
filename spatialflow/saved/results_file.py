"""Reading a JSON in COCO's panoptic results format."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from spatialflow.data.coco_panoptic import is_segment_id
from spatialflow.data.file_names import is_file_below, outside

_FIELDS = ("image_id", "file_name", "segments_info")


def read_panoptic_results(path: str) -> list[dict[str, Any]]:
    """The ``annotations`` of a JSON with predictions.

    Returns:
        dicts with ``image_id``, ``file_name`` and ``segments_info``, one an image.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is no such JSON, an image is predicted twice, or a file name is absolute or
            leads out of its folder.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError as e:
        raise FileNotFoundError(f"Predictions {path} are not there.") from e
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is not valid JSON: {e}") from e
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise ValueError(
            f"{path} holds no panoptic results: it needs a list 'annotations' with "
            f"{', '.join(_FIELDS)} for each image."
        )
    seen: set = set()
    for annotation in annotations:
        missing = [f for f in _FIELDS if not isinstance(annotation, dict) or f not in annotation]
        if missing:
            raise ValueError(f"{path}: an annotation has no {missing[0]!r}: {annotation}"[:500])
        if not is_file_below(annotation["file_name"]):
            raise ValueError(f"{path}: {outside(annotation['file_name'])}.")
        if annotation["image_id"] in seen:
            raise ValueError(
                f"{path}: image {annotation['image_id']!r} is predicted more than once; keep one."
            )
        seen.add(annotation["image_id"])
    return annotations


def check_segments(path: str, annotation: dict[str, Any], categories: Set[int]) -> None:
    """Check ids and categories of an image's segments.

    Args:
        path: of the JSON, for the message.
        annotation: one of its annotations.
        categories: ids of the dataset's categories.

    Raises:
        ValueError: an id cannot be a PNG's, or a category is unknown.
    """
    for segment in annotation["segments_info"]:
        where = f"{path}, image {annotation['image_id']!r}"
        if not isinstance(segment, dict) or not is_segment_id(segment.get("id")):
            raise ValueError(f"{where}: a segment has no id from 1 to 2^24 - 1: {segment}"[:500])
        if segment.get("category_id") not in categories:
            raise ValueError(
                f"{where}: segment {segment['id']} has category id {segment.get('category_id')!r}; "
                f"those of the ground truth are {sorted(categories)}. Write the dataset's ids, "
                "not the contiguous ones of a model."
            )
