"""Panoptic maps of a video, frame by frame: ids stay with their object."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from spatialflow.data.categories import Categories

from .regions import Region
from .tracker import Detection, Tracker

_THUMBNAIL = (24, 16)
_CUT_DIFFERENCE = 12.0
"""Mean difference of two frames' thumbnails, of 255, that a cut needs at least."""
_CUT_RATIO = 4.0
"""And how many times that of the frames before."""
_MAX_COVERED = 0.5
"""A candidate is left out when more than this share of it is taken by things."""


class Candidate(NamedTuple):
    """A thing whose score is too low for the map.

    Attributes:
        mask: (H, W) bool.
        category_id: thing class.
        score: from 0 to 1.
    """

    mask: np.ndarray
    category_id: int
    score: float


class FramePrediction(NamedTuple):
    """What a model says about a frame.

    Attributes:
        ids: (H, W) segment ids, 0 for void.
        segments: in Detectron2's terms.
        candidates: things of low scores, which may carry on a track.
    """

    ids: np.ndarray
    segments: Sequence[dict[str, Any]]
    candidates: Sequence[Candidate] = ()


class PanopticTracker:
    """Gives the segments of a video ids that stay.

    Stuff label l has id l + 1. Things have the ids behind these, each of them once in a video, also
    as ``track_id``. At a cut all tracks end.

    Args:
        categories: the classes.
        tracker: for other settings of :class:`Tracker` than its own.
    """

    def __init__(self, categories: Categories, **tracker: Any) -> None:
        self._tracker = Tracker(first_id=len(categories.stuff) + 1, **tracker)
        self._thumbnail: np.ndarray | None = None
        self._differences: deque[float] = deque(maxlen=15)

    def __call__(
        self, image: np.ndarray, prediction: FramePrediction
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The map and segments of the next frame, with ids of the video.

        Args:
            image: (H, W, 3) uint8, the frame.
            prediction: of this frame alone.

        Returns:
            (H, W) int32; segments with ``area``, and things with ``track_id``.
        """
        if self._is_cut(image):
            self._tracker.reset()
        ids = prediction.ids
        things = [s for s in prediction.segments if s["isthing"]]
        masks = [ids == s["id"] for s in things]
        candidates = _uncovered(prediction.candidates, masks)
        detections = [
            *(
                Detection(Region.of(m), s["category_id"])
                for s, m in zip(things, masks, strict=True)
            ),
            *(Detection(Region.of(m), c.category_id, False) for c, m in candidates),
        ]
        tracks = self._tracker.update(detections)
        new_ids = {s["id"]: s["category_id"] + 1 for s in prediction.segments if not s["isthing"]}
        new_ids |= {s["id"]: t for s, t in zip(things, tracks, strict=False) if t is not None}
        result = _replace(ids, new_ids)
        segments = [dict(s, id=new_ids[s["id"]]) for s in prediction.segments]
        for (candidate, mask), track in zip(candidates, tracks[len(things) :], strict=True):
            if track is not None:
                result[mask] = track
                segments.append(
                    {
                        "id": track,
                        "isthing": True,
                        "category_id": candidate.category_id,
                        "score": candidate.score,
                    }
                )
        return result, _present(result, segments)

    def _is_cut(self, image: np.ndarray) -> bool:
        small = cv2.resize(image, _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self._thumbnail = self._thumbnail, small
        if before is None:
            return False
        difference = float(np.abs(small - before).mean())
        usual = float(np.median(self._differences)) if self._differences else 0.0
        is_cut = difference > max(_CUT_DIFFERENCE, _CUT_RATIO * usual)
        if is_cut:
            self._differences.clear()
        else:
            self._differences.append(difference)
        return is_cut


def _uncovered(
    candidates: Sequence[Candidate], things: Sequence[np.ndarray]
) -> list[tuple[Candidate, np.ndarray]]:
    """Candidates, best first, with what of their masks no thing and no better one has."""
    taken = np.logical_or.reduce(things) if things else None
    kept = []
    for candidate in sorted(candidates, key=lambda c: -c.score):
        mask = candidate.mask if taken is None else candidate.mask & ~taken
        if np.count_nonzero(mask) > (1 - _MAX_COVERED) * np.count_nonzero(candidate.mask):
            kept.append((candidate, mask))
            taken = mask if taken is None else taken | mask
    return kept


def _replace(ids: np.ndarray, new_ids: dict[int, int]) -> np.ndarray:
    """A map with other ids; those that are not named become void."""
    lookup = np.zeros(int(ids.max(initial=0)) + 1, np.int32)
    for old, new in new_ids.items():
        lookup[old] = new
    return lookup[ids]


def _present(ids: np.ndarray, segments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Segments that have pixels, with their areas and, things, their track."""
    areas = np.bincount(ids.ravel(), minlength=1 + max((s["id"] for s in segments), default=0))
    return [
        {**s, "area": int(areas[s["id"]]), **({"track_id": s["id"]} if s["isthing"] else {})}
        for s in segments
        if areas[s["id"]]
    ]
