"""A run by Ray, where it is installed: it is not part of `make install`."""

import pytest
from predict_runs import assert_same, kill

pytest.importorskip("ray", reason="the optional package Ray: pip install 'spatialflow[ray]'")

COUNT = 18


def test_killed_worker__its_shard_is_done_again_and_no_other(runs, undisturbed):
    hold = runs.order("hold", 6)
    run = runs.start("out", "--executor", "ray", "--workers", "2")
    kill(runs.worker_at(6))
    hold.unlink()
    assert run.wait(100) == 0
    assert_same(runs, "out", undisturbed)
    assert runs.count() == {**dict.fromkeys(range(COUNT), 1), 4: 2, 5: 2, 6: 2}
