"""Masks cut to their boxes, so that overlaps cost no more than the objects are large."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np


@dataclass(frozen=True)
class Region:
    """A mask within the smallest box around it.

    Attributes:
        top, left: row and column of the box in the frame.
        mask: (h, w) bool.
    """

    top: int
    left: int
    mask: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> Region:
        """The region of a mask (H, W) bool that has a pixel."""
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        return cls(top, left, mask[top : top + height, left : left + width].copy())

    @cached_property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def center(self) -> np.ndarray:
        """(2,) row and column of the centre of mass in the frame."""
        rows, columns = np.nonzero(self.mask)
        return np.array([self.top + rows.mean(), self.left + columns.mean()])

    def moved(self, shift: np.ndarray) -> Region:
        """The region moved by whole pixels, as near as can be to a shift (2,) of row and column."""
        down, right = (int(v) for v in np.rint(shift))
        return Region(self.top + down, self.left + right, self.mask)

    def intersection(self, other: Region) -> int:
        """Pixels that are in both."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.mask.shape[0], other.top + other.mask.shape[0])
        right = min(self.left + self.mask.shape[1], other.left + other.mask.shape[1])
        if top >= bottom or left >= right:
            return 0
        mine, its = (
            r.mask[top - r.top : bottom - r.top, left - r.left : right - r.left]
            for r in (self, other)
        )
        return int(np.count_nonzero(mine & its))
