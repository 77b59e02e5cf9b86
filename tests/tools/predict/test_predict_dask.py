"""Runs by Dask: a cluster of this machine, one with a scheduler, hosts whose cable is pulled."""

import pytest
from predict_runs import assert_same, kill, until

pytest.importorskip("distributed")
from dask_cluster import Cluster, Network  # noqa: E402

COUNT = 18
DASK = ("--executor", "dask")


def test_local_cluster__killed_worker_then_killed_client(runs, undisturbed):
    hold = runs.order("hold", 10)
    run = runs.start("out", *DASK, "--workers", "2")
    killed = runs.worker_at(10)
    kill(killed)
    until(lambda: runs.count()[10] == 2)  # another worker has it
    until(lambda: len(runs.finished("out")) >= 12)
    kill(run.pid)
    run.wait(60)
    hold.unlink()
    before, finished = runs.count(), runs.finished("out")
    runs.run("out")  # and processes go on
    assert_same(runs, "out", undisturbed)
    assert all(runs.count()[n] == before[n] for n in finished)
    assert all(before[n] == 1 for n in finished - {8, 9, 10, 11})


def test_cluster_with_a_scheduler__killed_worker_and_client(runs, undisturbed):
    hold = runs.order("hold", 6)
    with Cluster(runs.folder, runs.faults, 2) as cluster:
        words = (*DASK, "--scheduler", cluster.address)
        run = runs.start("out", *words)
        worker = runs.worker_at(6)
        until(lambda: len(runs.finished("out")) >= 14)
        kill(run.pid, worker)
        run.wait(60)
        before, finished = runs.count(), runs.finished("out")
        hold.unlink()
        runs.run("out", *words)
        assert_same(runs, "out", undisturbed)
        assert all(runs.count()[n] == before[n] == 1 for n in finished)


@pytest.fixture
def network():
    """Four hosts: of a scheduler, two workers and a client."""
    try:
        with Network(4) as network:
            yield network
    except OSError as e:
        pytest.skip(f"this machine makes no network namespaces: {e}")


def test_hosts__one_is_cut_off_and_another_one_has_its_shard(runs, undisturbed, network):
    hold = runs.order("hold", 6)
    with Cluster(runs.folder, runs.faults, 2, network) as cluster:
        assert network.address(0) in cluster.address
        run = runs.start("out", *DASK, "--scheduler", cluster.address, prefix=cluster.prefix(3))
        lost = runs.worker_at(6)
        until(lambda: len(runs.finished("out")) >= 14)
        before = runs.count()
        network.cut(network.host_of(lost))
        until(lambda: runs.count()[6] == 2)
        assert network.host_of(runs.worker_at(6)) != network.host_of(lost)
        hold.unlink()
        assert run.wait(90) == 0
    assert_same(runs, "out", undisturbed)
    assert all(runs.count()[n] == before[n] == 1 for n in set(range(COUNT)) - {4, 5, 6, 7})
