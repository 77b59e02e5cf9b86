"""Identities over the frames of a video: ids and colours that stay with the object.

Needs numpy, OpenCV and scipy only.

    regions.py  masks cut to their boxes, their overlaps after a shift
    tracker.py  things of one frame and the tracks so far
    video.py    panoptic maps whose ids stay, frame by frame
"""

from .tracker import Detection, Tracker
from .video import Candidate, FramePrediction, PanopticTracker

__all__ = ["Candidate", "Detection", "FramePrediction", "PanopticTracker", "Tracker"]
