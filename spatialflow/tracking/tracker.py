"""Which thing of a frame is which of the frames before.

Tracking by detection in two rounds, as ByteTrack (Zhang et al., ECCV 2022, Algorithm 1), with masks
in place of boxes. A track keeps the mask of its object where a constant velocity puts it. The first
round assigns confident detections by mask IoU. In the second one, detections of which little is
seen, and those of low scores, are assigned by the share of the smaller mask that lies in the other:
what comes out from behind another object covers a part of its mask. Unmatched confident detections
begin tracks; a track without detection is lost, and after a while gone. Classes are never mixed.

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
_HIDDEN_SHARE = 0.85
"""An object of which less is seen than this share of its area is partly hidden."""
_AREA_DECAY = 0.98
"""How fast, in a frame, an object may get smaller without being taken for hidden."""
_MAX_HIDDEN = 20
"""After so many frames it is taken for smaller."""


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
        self._rounds: tuple[tuple[Callable[[Region, Region], float], float], ...] = (
            (_iou, min_iou),
            (_share_of_smaller, min_share),
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
        for number, (similarity, threshold) in enumerate(self._rounds):
            open_ = [
                i
                for i, d in enumerate(detections)
                if ids[i] is None and (d.confident or number == 1)
            ]
            for track, i in _assign(free, detections, open_, similarity, threshold):
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
    open_: Sequence[int],
    similarity: Callable[[Region, Region], float],
    threshold: float,
) -> list[tuple[_Track, int]]:
    """Pairs of tracks and detections of one class with the largest sum of similarities."""
    scores = np.zeros((len(tracks), len(open_)))
    for row, track in enumerate(tracks):
        expected = track.expected
        for column, i in enumerate(open_):
            detection = detections[i]
            # Low scores only carry on what was seen in the frame before.
            possible = detection.confident or track.lost == 1
            if possible and detection.category_id == track.category_id:
                scores[row, column] = similarity(expected, detection.region)
    scores[scores < threshold] = 0
    rows, columns = linear_sum_assignment(scores, maximize=True)
    return [(tracks[r], open_[c]) for r, c in zip(rows, columns, strict=True) if scores[r, c] > 0]


def _iou(a: Region, b: Region) -> float:
    shared = a.intersection(b)
    return shared / (a.area + b.area - shared)


def _share_of_smaller(a: Region, b: Region) -> float:
    return a.intersection(b) / min(a.area, b.area)
