"""Runs along the rows of maps."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spatialflow.utils.runs import runs

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6))


@given(
    SHAPES.flatmap(
        lambda s: st.lists(arrays(np.int32, s, elements=st.integers(0, 2)), min_size=1, max_size=3)
    )
)
def test_runs_cover_the_maps_and_nothing_changes_within(maps):
    starts, lengths = runs(*maps)
    width = maps[0].shape[1]
    assert starts[0] == 0 and (starts + lengths)[:-1].tolist() == starts[1:].tolist()
    assert lengths.sum() == maps[0].size
    assert ((starts // width) == ((starts + lengths - 1) // width)).all()
    flat = np.stack([m.ravel() for m in maps])
    assert (np.repeat(flat[:, starts], lengths, axis=1) == flat).all()
    within_a_row = starts[1:][starts[1:] % width > 0]
    assert (flat[:, within_a_row] != flat[:, within_a_row - 1]).any(axis=0).all()
