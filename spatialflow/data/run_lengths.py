"""COCO's run-length masks of panoptic maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from spatialflow.utils.runs import runs


def encode_masks(ids: np.ndarray) -> dict[int, dict[str, Any]]:
    """COCO's run lengths of each segment of a map.

    Args:
        ids: (H, W) segment ids.

    Returns:
        ``{"size": [H, W], "counts": text}`` by id, void left out.
    """
    height, width = ids.shape
    by_columns = np.ascontiguousarray(ids.T)
    starts, lengths = runs(by_columns)
    values = by_columns.ravel()[starts]
    order = np.argsort(values, kind="stable")
    found, firsts = np.unique(values[order], return_index=True)
    masks = {}
    for id_, own in zip(found.tolist(), np.split(order, firsts[1:]), strict=True):
        if id_ != 0:
            ends = starts[own] + lengths[own]
            counts = _alternating(starts[own], ends, ids.size)
            rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
            masks[id_] = {"size": [height, width], "counts": rle["counts"].decode()}
    return masks


def _alternating(starts: np.ndarray, ends: np.ndarray, size: int) -> list[int]:
    """Lengths outside and inside of a mask in turn, from where its pieces start and end."""
    separate = starts[1:] != ends[:-1]  # a run ends with its column, a mask need not
    edges = np.empty(2 * (1 + int(separate.sum())), np.int64)
    edges[0::2] = starts[np.append(True, separate)]
    edges[1::2] = ends[np.append(separate, True)]
    last = [size] if edges[-1] < size else []
    return np.diff(edges, prepend=0, append=last).tolist()
