"""Run-length masks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from spatialflow.data.run_lengths import encode_masks


@given(
    arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 4))
)
def test_masks_are_coco_s(ids):
    masks = encode_masks(ids)
    assert set(masks) == set(np.unique(ids)) - {0}
    for id_, rle in masks.items():
        assert rle["counts"].encode() == coco_mask.encode(np.asfortranarray(ids == id_))["counts"]
