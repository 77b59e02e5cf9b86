"""Training targets from a panoptic PNG and its segments: pure numpy functions.

Legend: H, W are the map's size; N things, S segments of the image. A *segment* is
an entry of a dataset dict's ``segments_info`` (see :mod:`spatialflow.data.coco_panoptic`). The
*index map* holds 0 for void and i + 1 for the pixels of segment i; it is what gets augmented, and
all targets are derived from it, so that boxes, masks and stuff labels cannot disagree.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from kornia_rs.io import decode_image_png_u8

from spatialflow.utils.runs import runs

from .categories import VOID_LABEL
from .shards import read_file

Segments = Sequence[dict[str, Any]]


class PngKindError(ValueError):
    """A PNG whose pixels cannot be segment ids: grey, of 16 bits or with a palette."""


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SIZE, _PNG_BIT_DEPTH, _PNG_COLOR_TYPE = 16, 24, 25  # offsets of these in a PNG's header
_PNG_RGB = (2, 6)  # colour types RGB and RGB with alpha
_DEFLATE_RATIO = 1032  # no deflate stream expands to more: two bits for 258 bytes


def read_panoptic_png(path: str, out: np.ndarray | None = None) -> np.ndarray:
    """Segment ids of a panoptic PNG: id = R + 256 G + 65536 B, 0 is void.

    Args:
        path: path of the file, or of one in a shard.
        out: array of an earlier call; if its size is the same, it is overwritten and returned.
            Allocating another one takes half as long as the decoding.

    Returns:
        (H, W) int32.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no PNG or is damaged.
        PngKindError: it is grey, with a palette or of 16 bits.
    """
    try:
        data = read_file(path)
    except FileNotFoundError as e:
        raise FileNotFoundError(f"Panoptic PNG {path} not found.") from e
    if not data.startswith(_PNG_SIGNATURE) or len(data) <= _PNG_COLOR_TYPE:
        raise ValueError(f"Panoptic PNG {path} is no PNG file.")
    if data[_PNG_BIT_DEPTH] != 8 or data[_PNG_COLOR_TYPE] not in _PNG_RGB:
        raise PngKindError(
            f"Panoptic PNG {path} must be 8-bit RGB (id = R + 256 G + 65536 B), not grey, 16-bit "
            "or with a palette."
        )
    pixels = None if out is None else out.view(np.uint8).reshape(*out.shape, 4)
    rgba = _decode_rgba(data, pixels)
    if rgba is None:
        raise ValueError(f"Panoptic PNG {path} is damaged and cannot be decoded; replace it.")
    # Four bytes a pixel, read as one little-endian integer; the top byte is the alpha of 255.
    ids = rgba.view("<i4")[..., 0]
    return np.bitwise_and(ids, 0xFFFFFF, out=ids)


def rgb_of_ids(ids: np.ndarray) -> np.ndarray:
    """Pixels of a panoptic PNG: id = R + 256 G + 65536 B.

    Args:
        ids: (H, W) integers from 0 to 2^24 - 1.

    Returns:
        (H, W, 3) uint8 in RGB order.
    """
    ids = ids.astype(np.int32, copy=False)  # numpy 2 keeps small types, which 256 is too large for
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def index_map(ids: np.ndarray, segments: Segments, file_name: str) -> np.ndarray:
    """Replace segment ids by the segments' numbers.

    Args:
        ids: (H, W) segment ids, 0 for void.
        segments: S segments, every one of which has pixels.
        file_name: file name of the PNG, for messages.

    Returns:
        (H, W) 0 for void, i + 1 for segment i; uint8, or uint16 for more than 255 segments.

    Raises:
        ValueError: the map has an id that no segment has, or the reverse.
    """
    starts, lengths = runs(ids)
    found, run_of = np.unique(ids.reshape(-1)[starts], return_inverse=True)
    number = {0: 0, **{s["id"]: i + 1 for i, s in enumerate(segments)}}
    _check_same_ids(set(found.tolist()), number.keys(), file_name)
    dtype = np.uint8 if len(segments) <= 255 else np.uint16
    lookup = np.array([number[i] for i in found.tolist()], dtype)
    return np.repeat(lookup[run_of], lengths).reshape(ids.shape)


def measure_segments(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas and boxes of everything in a map of segment ids, void (id 0) among them.

    Args:
        ids: (H, W) segment ids.

    Returns:
        (K,) the ids in ascending order; (K,) int64 areas in pixels; (K, 4) int64 boxes x, y,
        width, height, tight around the pixels as COCO has them.
    """
    starts, lengths = runs(ids)
    found, run_of = np.unique(ids.reshape(-1)[starts], return_inverse=True)
    order = np.argsort(run_of, kind="stable")
    firsts = np.searchsorted(run_of[order], np.arange(len(found)))
    y, x = np.divmod(starts[order], ids.shape[1])
    length = lengths[order]
    left, top = (np.minimum.reduceat(v, firsts) for v in (x, y))
    right, bottom = (np.maximum.reduceat(v, firsts) for v in (x + length, y + 1))
    boxes = np.stack([left, top, right - left, bottom - top], axis=1)
    return found, np.add.reduceat(length, firsts), boxes


def thing_masks(index: np.ndarray, segments: Segments) -> tuple[np.ndarray, ...]:
    """Masks, boxes and classes of the things that are no crowd and have a pixel in the map.

    Args:
        index: (H, W) index map.

    Returns:
        masks (N, H, W) bool; boxes (N, 4) float32, x1 y1 x2 y2 tight around the masks; classes
        (N,) int64.
    """
    numbers = [i + 1 for i, s in enumerate(segments) if s["isthing"] and not s["iscrowd"]]
    masks, boxes, present = _masks_and_boxes(index, numbers)
    classes = [segments[n - 1]["category_id"] for n in numbers]
    return masks[present], boxes[present], np.array(classes, np.int64)[present]


def crowd_mask(index: np.ndarray, segments: Segments) -> np.ndarray:
    """(H, W) bool: where an (H, W) index map has a crowd region of things."""
    is_crowd = [False, *(bool(s["isthing"] and s["iscrowd"]) for s in segments)]
    return np.array(is_crowd)[index]


def stuff_labels(index: np.ndarray, segments: Segments) -> np.ndarray:
    """(H, W) uint8 stuff labels of an (H, W) index map; 255 for void."""
    return np.array([VOID_LABEL, *(s["stuff_label"] for s in segments)], np.uint8)[index]


def _decode_rgba(png: bytes, out: np.ndarray | None) -> np.ndarray | None:
    """(H, W, 4) pixels of an 8-bit RGB(A) PNG, made opaque; None when it is damaged."""
    has_alpha = png[_PNG_COLOR_TYPE] != _PNG_RGB[0]
    width, height = struct.unpack_from(">II", png, _PNG_SIZE)
    # Before a decoder asks for the memory: where there is not so much, kornia-rs panics.
    if height * width * (4 if has_alpha else 3) > _DEFLATE_RATIO * len(png):
        return None
    try:
        if has_alpha:
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            bgr = cv2.imdecode(np.frombuffer(png, np.uint8), flags)
            return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGBA, out)
        # Five times as fast as OpenCV's decoder, and most of the time that evaluation takes.
        rgb = decode_image_png_u8(png, (height, width), "rgb")
    except Exception:  # the decoders have no class of their own for what is damaged
        return None
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA, out)


def _check_same_ids(in_png: set[int], in_json: Any, file_name: str) -> None:
    extra = sorted(in_png - in_json)
    lost = sorted(in_json - in_png - {0})
    if extra or lost:
        parts = [f"{len(extra)} in the PNG only: {extra[:10]}"] * bool(extra)
        parts += [f"{len(lost)} in segments_info only: {lost[:10]}"] * bool(lost)
        raise ValueError(
            f"Panoptic PNG {file_name} and its JSON have different segment ids, "
            f"{'; '.join(parts)}. Correct one or the other."
        )


def _masks_and_boxes(
    index: np.ndarray, numbers: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of K segment numbers: masks (K, H, W), boxes (K, 4), and which have a pixel (K,)."""
    masks = index == np.array(numbers, index.dtype)[:, None, None]
    xywh = [cv2.boundingRect(m) for m in masks.view(np.uint8)]
    boxes = np.array(xywh, np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return masks, boxes, boxes[:, 2] > boxes[:, 0]
