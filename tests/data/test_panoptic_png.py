"""Panoptic PNGs: the pixels of ids, and the ids of pixels."""

import numpy as np
import pytest
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from spatialflow.data.targets import read_panoptic_png, rgb_of_ids


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_pixels_of_ids_are_panopticapis_and_read_back(tmp_path, dtype):
    most = min(2**24 - 1, np.iinfo(dtype).max)
    ids = np.random.default_rng(0).integers(0, most, (5, 7), endpoint=True).astype(dtype)
    pixels = rgb_of_ids(ids)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, id2rgb(ids.astype(np.int64)))
    np.testing.assert_array_equal(rgb2id(pixels), ids)
    Image.fromarray(pixels).save(tmp_path / "ids.png")
    np.testing.assert_array_equal(read_panoptic_png(str(tmp_path / "ids.png")), ids)
