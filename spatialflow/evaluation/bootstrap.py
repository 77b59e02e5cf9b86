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

    Args:
        images, categories, replicates, seed: see :func:`bootstrap_values`.
        level: confidence level, the share of the replicates inside the interval.

    Returns:
        :func:`interval` of each metric.

    Raises:
        ValueError: there is no image, or fewer than one replicate.
    """
    values = bootstrap_values(images, categories, replicates, seed)
    return {metric: interval(drawn, level) for metric, drawn in values.items()}


def bootstrap_values(
    images: Sequence[ImageCounts], categories: Sequence[Mapping], replicates: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """The metrics of resampled sets of images.

    Each replicate draws as many images as there are, with replacement, and is averaged like the
    whole. Memory does not grow with the number of replicates times that of images. With one seed,
    two models that were scored on the same images in one order meet the same draws, so that the
    differences between their replicates are paired.

    Args:
        images: counts of each image.
        categories: the C categories that their rows are of.
        replicates: R, how often to draw.
        seed: seed of the random numbers.

    Returns:
        (R,) percentages by metric (PQ, SQ, RQ, PQ_th ... RQ_st); NaN for a replicate in which no
        class of the group occurs.

    Raises:
        ValueError: there is no image, or fewer than one replicate.
    """
    if not images or replicates < 1:
        raise ValueError("Bootstrap intervals need at least one image and one replicate.")
    parts = [
        group_averages(table, categories)
        for table in _resampled(images, len(categories), replicates, seed)
    ]
    values: dict[str, np.ndarray] = {}
    for group, suffix in GROUP_SUFFIXES.items():
        drawn = 100 * np.concatenate([part[group][0] for part in parts])
        values |= {key + suffix: column for key, column in zip(QUALITIES, drawn.T, strict=True)}
    return values


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a metric's replicates, NaN left out; NaN when all of them are."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


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
