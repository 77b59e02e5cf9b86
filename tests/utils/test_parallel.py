"""Working in several processes."""

import os
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


def test_workers_end_with_a_process_that_is_killed():
    command = [sys.executable, "-c", textwrap.dedent(PARENT_THAT_IS_KILLED)]
    parent = subprocess.Popen(command, start_new_session=True)
    assert parent.wait(60) == -9
    deadline = time.monotonic() + 30
    while has_processes(parent.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not has_processes(parent.pid)


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
