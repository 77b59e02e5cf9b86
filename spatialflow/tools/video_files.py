"""Frames from a video file, a webcam or a folder of images; frames to a video file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from spatialflow.data.mapper import read_image
from spatialflow.errors import UserError

from .image_files import images_in

_DEFAULT_RATE = 25.0
_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}


class VideoSource:
    """Frames, one after the other; iterating goes through them once.

    Args:
        source: a video file, a folder of images, or the number of a webcam.

    Attributes:
        rate: frames a second.
        length: number of frames, as far as the file says; None: not known.

    Raises:
        FileNotFoundError: the file is not found, or the folder has no image.
        UserError: it cannot be opened as a video.
    """

    def __init__(self, source: Path | int) -> None:
        self._name = f"webcam {source}" if isinstance(source, int) else str(source)
        self._images: list[Path] | None = None
        self._capture: cv2.VideoCapture | None = None
        self.rate = _DEFAULT_RATE
        self.length: int | None = None
        if isinstance(source, Path) and source.is_dir():
            self._images = images_in(source)
            self.length = len(self._images)
            if not self._images:
                raise FileNotFoundError(f"Folder {source} has no image.")
            return
        if isinstance(source, Path) and not source.is_file():
            raise FileNotFoundError(f"Video {source} not found.")
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            raise UserError(f"{self._name} cannot be opened as a video.")
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or _DEFAULT_RATE
        counted = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = counted if counted > 0 and not isinstance(source, int) else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 frames in BGR order."""
        for path in self._images or ():
            yield np.ascontiguousarray(read_image(str(path), "BGR"))
        while self._capture is not None:
            found, frame = self._capture.read()
            if not found:
                return
            yield frame

    def close(self) -> None:
        """Give the file or the webcam free."""
        if self._capture is not None:
            self._capture.release()


class VideoSink:
    """A video file that frames of one size are written to; the first one says which.

    Args:
        path: its ending says the format: .mp4, .mkv, .mov, .avi.
        rate: frames a second.

    Raises:
        UserError: another ending.
    """

    def __init__(self, path: Path, rate: float) -> None:
        if path.suffix.lower() not in _CODECS:
            raise UserError(f"{path}: the name of a video ends in {', '.join(_CODECS)}.")
        self._path = path
        self._rate = rate
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, ...] = ()

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, (H, W, 3) uint8 in BGR order.

        Raises:
            OSError: the file cannot be written.
            UserError: the frame has another size than the first one.
        """
        if self._writer is None:
            height, width = self._size = frame.shape[:2]
            codec = cv2.VideoWriter.fourcc(*_CODECS[self._path.suffix.lower()])
            self._writer = cv2.VideoWriter(str(self._path), codec, self._rate, (width, height))
            if not self._writer.isOpened():
                raise OSError(f"Video {self._path} could not be written.")
        if frame.shape[:2] != self._size:
            raise UserError(f"A frame has the size {frame.shape[:2]}, those before {self._size}.")
        self._writer.write(frame)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()
