"""Which thing of a frame is which of the frames before.

Tracking by detection in rounds, as ByteTrack (Zhang et al., ECCV 2022, Algorithm 1), with masks in
place of boxes. A track keeps the mask of its object where a constant velocity puts it. The first
round assigns confident detections by mask IoU. In the second one, detections of which little is
seen, and those of low scores, are assigned by the share of the smaller mask that lies in the other:
what comes out from behind another object covers a part of its mask. In the third one confident
detections are assigned to lost tracks near by, whose velocity was not exact enough for an overlap.
Unmatched confident detections begin tracks; a track without detection is lost, and after a while
gone. Classes are never mixed.

While an object is partly hidden, or leaves the frame, its track keeps the mask that it had before,
so that neither its size nor its velocity follow the part that is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from .regions import Region

_VELOCITY_UPDATE = 0.4
"""Share of a new measurement in the velocity."""
_HIDDEN_SHARE = 0.8
"""An object of which less is seen than this share of its area is partly hidden."""
_AREA_DECAY = 0.98
"""How fast, in a frame, an object may get smaller without being taken for hidden."""
_MAX_HIDDEN = 20
"""After so many frames it is taken for smaller."""


_REACH = 1.4
"""How far from its place a lost object is looked for, in roots of its area."""


class Detection(NamedTuple):
    """A thing in a frame.

    Attributes:
        region: its mask.
        category_id: its class.
        confident: whether it may begin a track.
    """

    region: Region
    category_id: int
    confident: bool = True


@dataclass
class _Track:
    """An object over the frames.

    Attributes:
        region: its mask when it was last seen as a whole, ``frames`` frames ago.
        area: how large it is, in pixels.
        velocity: rows and columns a frame.
        is_new: it was seen in one frame only.
        lost: frames since it was last seen at all.
        hidden: frames, one after the other, in which it was partly hidden.
    """

    id: int
    category_id: int
    region: Region
    area: float
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    is_new: bool = True
    frames: int = 0
    lost: int = 0
    hidden: int = 0

    def predict(self) -> None:
        """Move on to the next frame, as if nothing were found there."""
        self.frames += 1
        self.lost += 1

    @property
    def expected(self) -> Region:
        """Where its mask should be."""
        return self.region.moved(self.frames * self.velocity)

    def update(self, region: Region) -> None:
        """Take in what was found of it."""
        self.lost = 0
        self.hidden = self.hidden + 1 if region.area < _HIDDEN_SHARE * self.area else 0
        if 0 < self.hidden <= _MAX_HIDDEN:
            return
        measured = (region.center - self.region.center) / self.frames
        weight = 1.0 if self.is_new else _VELOCITY_UPDATE
        self.velocity = (1 - weight) * self.velocity + weight * measured
        self.area = region.area if self.hidden else max(region.area, _AREA_DECAY * self.area)
        self.region, self.frames, self.hidden, self.is_new = region, 0, 0, False


Similarity = Callable[[_Track, Detection], float]
"""From 0 for what cannot be the same object to 1."""


class Tracker:
    """The tracks of a video.

    Args:
        first_id: id of the first track; the next ones count on.
        max_lost: frames that a track is kept without a detection.
        min_iou: mask IoU that the first round needs.
        min_share: share of the smaller mask in the other that the second round needs.
    """

    def __init__(
        self,
        first_id: int = 1,
        max_lost: int = 30,
        min_iou: float = 0.3,
        min_share: float = 0.5,
    ) -> None:
        self.next_id = first_id
        self._max_lost = max_lost
        self._rounds: tuple[tuple[Similarity, float], ...] = (
            (_iou, min_iou),
            (_share_of_smaller, min_share),
            (_nearness, 0.0),
        )
        self._tracks: list[_Track] = []

    def __len__(self) -> int:
        """The number of tracks that are kept."""
        return len(self._tracks)

    def reset(self) -> None:
        """Forget all tracks, as at a cut; ids go on."""
        self._tracks = []

    def update(self, detections: Sequence[Detection]) -> list[int | None]:
        """The ids of the things of the next frame.

        Args:
            detections: of one frame.

        Returns:
            An id for each detection; None for those that are not confident and belong to no track.
        """
        for track in self._tracks:
            track.predict()
        ids: list[int | None] = [None] * len(detections)
        free = list(self._tracks)
        for similarity, threshold in self._rounds:
            unmatched = [i for i, id_ in enumerate(ids) if id_ is None]
            for track, i in _assign(free, detections, unmatched, similarity, threshold):
                ids[i] = track.id
                track.update(detections[i].region)
            free = [t for t in free if t.id not in ids]
        for i, detection in enumerate(detections):
            if ids[i] is None and detection.confident:
                ids[i] = self._begin(detection)
        self._tracks = [t for t in self._tracks if t.lost <= self._max_lost]
        return ids

    def _begin(self, detection: Detection) -> int:
        region = detection.region
        track = _Track(self.next_id, detection.category_id, region, float(region.area))
        self._tracks.append(track)
        self.next_id += 1
        return track.id


def _assign(
    tracks: Sequence[_Track],
    detections: Sequence[Detection],
    unmatched: Sequence[int],
    similarity: Similarity,
    threshold: float,
) -> list[tuple[_Track, int]]:
    """Pairs of tracks and detections of one class with the largest sum of similarities."""
    scores = np.zeros((len(tracks), len(unmatched)))
    for row, track in enumerate(tracks):
        for column, i in enumerate(unmatched):
            if detections[i].category_id == track.category_id:
                scores[row, column] = similarity(track, detections[i])
    scores[scores < threshold] = 0
    rows, columns = linear_sum_assignment(scores, maximize=True)
    pairs = zip(rows, columns, strict=True)
    return [(tracks[row], unmatched[column]) for row, column in pairs if scores[row, column] > 0]


def _iou(track: _Track, detection: Detection) -> float:
    if not detection.confident:
        return 0.0
    shared = track.expected.intersection(detection.region)
    return shared / (track.region.area + detection.region.area - shared)


def _share_of_smaller(track: _Track, detection: Detection) -> float:
    # Low scores only carry on what was seen in the frame before.
    if not detection.confident and track.lost > 1:
        return 0.0
    shared = track.expected.intersection(detection.region)
    return shared / min(track.region.area, detection.region.area)


def _nearness(track: _Track, detection: Detection) -> float:
    if not detection.confident or track.lost == 1:
        return 0.0
    way = detection.region.center - track.region.center - track.frames * track.velocity
    return max(0.0, 1 - float(np.hypot(*way)) / (_REACH * track.area**0.5))
