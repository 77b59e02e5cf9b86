"""Quality of panoptic videos: VPQ, and how often identities are switched.

VPQ is of Kim et al., "Video Panoptic Segmentation" (CVPR 2020, Sec. 4.1): the segments of an id
over k frames are a tube, tubes are matched as segments are in PQ, over all windows of k frames, and
VPQ is the mean over several k. With k = 1 it is PQ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .panoptic_quality import PanopticCounts, match_segments

WINDOWS = (1, 5, 10, 15)
"""Frames of a window, as in the paper."""


class _Frame(NamedTuple):
    pred_map: np.ndarray
    pred_segments: Sequence[Mapping]
    gt_map: np.ndarray
    gt_segments: Sequence[Mapping]


class VideoPanopticQuality:
    """VPQ and identity switches, frame by frame; memory does not grow with the frames.

    Args:
        categories: dicts with ``id``, ``name`` and ``isthing``, as in a panoptic JSON.
        windows: the k of VPQ.
    """

    def __init__(self, categories: Iterable[Mapping], windows: Sequence[int] = WINDOWS) -> None:
        self._categories = list(categories)
        self.counts = {k: PanopticCounts(self._categories) for k in windows}
        self._things = {c["id"] for c in self._categories if c["isthing"]}
        self._frames: deque[_Frame] = deque(maxlen=max(windows))
        self._last_match: dict[int, int] = {}
        self.switches = 0
        self.frames = 0

    def start_video(self) -> None:
        """Begin another video: no window goes across, and ids mean other objects."""
        self._frames.clear()
        self._last_match.clear()

    def add(
        self,
        pred_map: np.ndarray,
        pred_segments: Sequence[Mapping],
        gt_map: np.ndarray,
        gt_segments: Sequence[Mapping],
    ) -> None:
        """Add the next frame of the video.

        Args:
            pred_map, gt_map: (H, W) ids that stay with an object over the frames.
            pred_segments, gt_segments: their segment lists, with the dataset's category ids.

        Raises:
            ValueError: a map and its list do not fit.
        """
        # Maps are kept: the caller may write the next frame into the same memory.
        frame = _Frame(pred_map.copy(), pred_segments, gt_map.copy(), gt_segments)
        self._frames.append(frame)
        self.frames += 1
        for k, counts in self.counts.items():
            if len(self._frames) >= k:
                counts.add(match_segments(*_joined(list(self._frames)[-k:])))
        self._count_switches(frame)

    def metrics(self) -> dict[str, float]:
        """VPQ, VPQ_th and VPQ_st over all windows, and ``VPQ-k`` of each, in percent.

        ``switches`` is how often an object was found under another id than before. Windows that are
        longer than every video are left out.
        """
        all_metrics = {k: counts.metrics() for k, counts in self.counts.items()}
        by_window = {k: m for k, m in all_metrics.items() if not np.isnan(m["PQ"])}
        if not by_window:
            return {"VPQ": np.nan, "VPQ_th": np.nan, "VPQ_st": np.nan, "switches": self.switches}
        means = {
            f"V{name}": float(np.mean([m[name] for m in by_window.values()]))
            for name in ("PQ", "PQ_th", "PQ_st")
        }
        single = {f"VPQ-{k}": metrics["PQ"] for k, metrics in by_window.items()}
        return {**means, **single, "switches": self.switches}

    def _count_switches(self, frame: _Frame) -> None:
        matches = match_segments(*frame)
        for i, j in zip(matches.gt_index.tolist(), matches.pred_index.tolist(), strict=True):
            truth, found = frame.gt_segments[i], frame.pred_segments[j]["id"]
            if truth["category_id"] in self._things:
                self.switches += self._last_match.get(truth["id"], found) != found
                self._last_match[truth["id"]] = found


def _joined(frames: Sequence[_Frame]) -> _Frame:
    """Frames below each other, so that a tube is a segment."""
    return _Frame(
        np.concatenate([f.pred_map for f in frames]),
        _distinct(f.pred_segments for f in frames),
        np.concatenate([f.gt_map for f in frames]),
        _distinct(f.gt_segments for f in frames),
    )


def _distinct(lists: Iterable[Sequence[Mapping]]) -> list[Mapping]:
    """The segments of several frames, each id once."""
    by_id = {s["id"]: s for segments in lists for s in segments}
    return list(by_id.values())
