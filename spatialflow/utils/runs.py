"""Runs of equal values along the rows of maps."""

from __future__ import annotations

import numpy as np


def runs(*maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First pixels and lengths of the pieces of rows along which none of the maps changes.

    Segment ids are constant along most of a row, so looking at runs is much less work than at
    pixels.

    Args:
        maps: (H, W) each.

    Returns:
        (R,) indices into the flat maps, in ascending order, and (R,) lengths in pixels.
    """
    first, *others = maps
    begins = np.ones(first.shape, bool)
    np.not_equal(first[:, 1:], first[:, :-1], out=begins[:, 1:])
    for other in others:
        begins[:, 1:] |= other[:, 1:] != other[:, :-1]
    starts = np.flatnonzero(begins)
    return starts, np.diff(starts, append=first.size)
