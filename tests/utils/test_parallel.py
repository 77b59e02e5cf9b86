"""Working in several processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import cv2
import pytest

from spatialflow.utils.parallel import in_parallel

PARENT_THAT_IS_KILLED = """
    import os, signal
    from spatialflow.utils.parallel import in_parallel

    for pid in in_parallel(os.getpgid, [0] * 20, 2):
        os.kill(os.getpid(), signal.SIGKILL)
"""

PARENT_OF_LOADERS_THAT_IS_KILLED = """
    import os, signal, sys, time
    from detectron2.config import get_cfg
    from spatialflow.config import add_spatialflow_config
    from spatialflow.data import loader

    class Mapper:
        def __init__(self, cfg, is_train):
            pass

        def __call__(self, image):
            if sys.argv[1] == "blocked":
                time.sleep(600)
            return "x" * 1_000_000  # more than a pipe holds

    loader.PanopticMapper = Mapper
    loader.load_dataset_dicts = lambda name: [{"width": 2, "height": 1, "annotations": []}] * 50
    cfg = get_cfg()
    add_spatialflow_config(cfg)
    cfg.DATASETS.TRAIN = ("some",)
    cfg.DATALOADER.NUM_WORKERS = cfg.SOLVER.IMS_PER_BATCH = 2
    loaders = [loader.build_train_loader(cfg), loader.build_test_loader(cfg, "some")]
    loaded = list(map(iter, loaders))
    if sys.argv[1] == "results not taken":
        list(map(next, loaded))
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def double(n):
    if n == 66:
        raise ValueError("no 66")
    return 2 * n, os.getpid(), cv2.getNumThreads()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_are_in_order(workers):
    results = list(in_parallel(double, range(20), workers))
    assert [r[0] for r in results] == list(range(0, 40, 2))
    assert (os.getpid() in {r[1] for r in results}) == (workers <= 1)


def test_workers_leave_the_cores_to_each_other():
    assert {r[2] for r in in_parallel(double, range(20), 2)} == {1}


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_arrive(workers):
    with pytest.raises(ValueError, match="no 66"):
        list(in_parallel(double, range(100), workers))


@pytest.mark.parametrize(
    "script, arguments",
    [
        (PARENT_THAT_IS_KILLED, []),
        (PARENT_OF_LOADERS_THAT_IS_KILLED, ["blocked"]),
        (PARENT_OF_LOADERS_THAT_IS_KILLED, ["results not taken"]),
    ],
)
def test_workers_end_with_a_process_that_is_killed(script, arguments):
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    parent = subprocess.Popen(command, start_new_session=True)
    assert parent.wait(60) == -9
    deadline = time.monotonic() + 30
    while has_processes(parent.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    survived = has_processes(parent.pid)
    if survived:
        os.killpg(parent.pid, signal.SIGKILL)
    assert not survived


def has_processes(group):
    """Whether a process group has living members; the parent led one of its own."""
    states = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as f:
                state, _, pgrp = f.read().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(pgrp) == group:
            states.append(state)
    return any(state != "Z" for state in states)
