"""Confidence intervals of PQ, SQ and RQ by the bootstrap over images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .panoptic_quality import GROUP_SUFFIXES, QUALITIES, group_averages
from .scoring import ImageCounts

_REPLICATES_AT_ONCE, _IMAGES_AT_ONCE = 64, 512


def bootstrap_intervals(
    images: Sequence[ImageCounts],
    categories: Sequence[Mapping],
    replicates: int,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals over resampled sets of images.

    Each replicate draws as many images as there are, with replacement, and is averaged like the
    whole. Memory does not grow with the number of replicates times that of images.

    Args:
        images: counts of each image.
        categories: the C categories that their rows are of.
        replicates: how often to draw.
        seed: seed of the random numbers.
        level: confidence level, the share of the replicates inside the interval.

    Returns:
        Lower and upper end by metric (PQ, SQ, RQ, PQ_th ... RQ_st), in percent. Replicates in which
        no class of a group occurs are left out of its interval; NaN when they all are.

    Raises:
        ValueError: there is no image, or fewer than one replicate.
    """
    if not images or replicates < 1:
        raise ValueError("Bootstrap intervals need at least one image and one replicate.")
    parts = [
        group_averages(table, categories)
        for table in _resampled(images, len(categories), replicates, seed)
    ]
    intervals = {}
    for group, suffix in GROUP_SUFFIXES.items():
        drawn = 100 * np.concatenate([part[group][0] for part in parts])
        for key, values in zip(QUALITIES, drawn.T, strict=True):
            ends = np.array([(1 - level) / 2, (1 + level) / 2])
            values = values[~np.isnan(values)]
            found = np.quantile(values, ends).tolist() if len(values) else [float("nan")] * 2
            intervals[key + suffix] = tuple(found)
    return intervals


def _resampled(
    images: Sequence[ImageCounts], num_categories: int, replicates: int, seed: int
) -> Iterator[np.ndarray]:
    """(R, C, 4) sums of the counts over the images of R replicates at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, replicates, _REPLICATES_AT_ONCE):
        number = min(_REPLICATES_AT_ONCE, replicates - start)
        drawn = rng.integers(len(images), size=(number, len(images)))
        times = np.stack([np.bincount(row, minlength=len(images)) for row in drawn]).astype(float)
        table = np.zeros((number, num_categories * 4))
        for first in range(0, len(images), _IMAGES_AT_ONCE):
            some = slice(first, first + _IMAGES_AT_ONCE)
            table += times[:, some] @ _dense(images[some], num_categories)
        yield table.reshape(number, num_categories, 4)


def _dense(images: Sequence[ImageCounts], num_categories: int) -> np.ndarray:
    """(N, C * 4) counts of N images."""
    dense = np.zeros((len(images), num_categories, 4))
    for counts, image in zip(dense, images, strict=True):
        counts[image.rows] = image.values
    return dense.reshape(len(images), -1)
