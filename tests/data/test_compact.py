import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from panoptic_folder import CATEGORIES

from spatialflow.data.compact import CompactList

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(VALUES, max_size=4), st.integers(1, 60))
def test_it_holds_what_the_json_has(few, times):
    entries = json.loads(json.dumps(few * times))
    compact = CompactList(entries)
    assert list(compact) == entries and len(compact) == len(entries)
    assert [compact[i] for i in range(len(entries))] == entries
    for index in (-1, len(entries)):
        with pytest.raises(IndexError):
            compact[index]


def test_what_was_read_can_be_changed():
    compact = CompactList([{"segments_info": CATEGORIES}])
    compact[0]["segments_info"].clear()
    next(iter(compact)).clear()
    assert compact[0] == {"segments_info": CATEGORIES}


def test_it_takes_a_small_part_of_the_memory():
    segments = [{"id": i, "category_id": 1, "area": i, "bbox": [i, i, i, i]} for i in range(10)]
    text = json.dumps([{"image_id": i, "segments_info": segments} for i in range(1000)])
    tracemalloc.start()
    try:
        entries = json.loads(text)
        parsed = tracemalloc.get_traced_memory()[0]
        compact = CompactList(entries)
        both = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(compact) == 1000 and both - parsed < 0.05 * parsed
