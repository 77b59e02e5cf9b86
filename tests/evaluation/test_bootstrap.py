"""Bootstrap intervals, compared with a plain loop over replicates."""

import math
import time

import numpy as np
import pytest
from panoptic_scenes import CATEGORIES, random_image

from spatialflow.evaluation import PanopticCounts, bootstrap_intervals, match_segments
from spatialflow.evaluation.scoring import ImageCounts

METRICS = [k + s for s in ("", "_th", "_st") for k in ("PQ", "SQ", "RQ")]


def image_counts(number, categories=CATEGORIES):
    rng, images = np.random.default_rng(5), []
    for _ in range(number):
        counts = PanopticCounts(categories)
        counts.add(match_segments(*random_image(rng)))
        rows = np.flatnonzero(counts.table.any(axis=1))
        images.append(ImageCounts(rows, counts.table[rows]))
    return images


def summed(images, categories=CATEGORIES):
    counts = PanopticCounts(categories)
    for image in images:
        counts.table[image.rows] += image.values
    return counts.metrics()


def test_equals_a_plain_loop(monkeypatch):
    monkeypatch.setattr("spatialflow.evaluation.bootstrap._IMAGES_AT_ONCE", 4)
    monkeypatch.setattr("spatialflow.evaluation.bootstrap._REPLICATES_AT_ONCE", 8)
    images = image_counts(15)
    rng = np.random.default_rng(11)
    drawn = [summed([images[i] for i in rng.integers(15, size=15)]) for _ in range(30)]
    found = bootstrap_intervals(images, CATEGORIES, 30, seed=11)
    assert list(found) == METRICS
    for metric in METRICS:
        values = [d[metric] for d in drawn]
        expected = np.quantile(values, [0.025, 0.975])
        assert found[metric] == pytest.approx(tuple(expected), abs=1e-9), metric


def test_interval_holds_the_estimate_and_narrows_with_images():
    images = image_counts(60)
    found, estimate = bootstrap_intervals(images, CATEGORIES, 200), summed(images)
    for metric in METRICS:
        assert found[metric][0] < estimate[metric] < found[metric][1]
    more = bootstrap_intervals(images * 16, CATEGORIES, 200)
    assert np.diff(more["PQ"]) < 0.5 * np.diff(found["PQ"])


def test_seed_decides():
    images = image_counts(10)
    one, same, other = (bootstrap_intervals(images, CATEGORIES, 20, seed=s) for s in (1, 1, 2))
    assert one == same != other


def test_group_that_never_occurs_is_nan():
    thing = ImageCounts(np.array([1]), np.array([[0.8, 1, 0, 0]]))
    found = bootstrap_intervals([thing, thing], CATEGORIES, 5)
    assert found["PQ_th"] == pytest.approx((80, 80))
    assert all(math.isnan(end) for end in found["PQ_st"])


@pytest.mark.parametrize("images, replicates", [(0, 10), (3, 0)])
def test_nothing_to_draw(images, replicates):
    with pytest.raises(ValueError, match="at least one image"):
        bootstrap_intervals(image_counts(images), CATEGORIES, replicates)


def test_coco_size_takes_seconds():
    rng = np.random.default_rng(0)
    categories = [{"id": i, "name": str(i), "isthing": i % 2} for i in range(133)]
    images = [
        ImageCounts(rng.choice(133, 10, replace=False), rng.random((10, 4))) for _ in range(5000)
    ]
    start = time.process_time()
    bootstrap_intervals(images, categories, 1000)
    assert time.process_time() - start < 30
