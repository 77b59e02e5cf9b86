"""Kill -9, hangs, signals: the output is that of an undisturbed run, and nothing is done again."""

import json
import os
import signal

import pytest
from predict_runs import assert_same, is_alive, kill, until

from spatialflow.tools.predict.command import UNFINISHED

COUNT = 18


def test_three_processes_give_the_bytes_of_one(runs, undisturbed):
    runs.run("out", "--workers", "3")
    assert_same(runs, "out", undisturbed)
    assert runs.count() == dict.fromkeys(range(COUNT), 1)


def test_killed_worker__its_shard_is_done_again_and_no_other(runs, undisturbed):
    hold = runs.order("hold", 6)
    run = runs.start("out", "--workers", "2")
    kill(runs.worker_at(6))
    hold.unlink()
    assert run.wait(60) == 0
    assert_same(runs, "out", undisturbed)
    assert runs.count() == {**dict.fromkeys(range(COUNT), 1), 4: 2, 5: 2, 6: 2}


@pytest.mark.parametrize("both", [False, True])
def test_killed_client__workers_end_and_the_next_run_goes_on(runs, undisturbed, both):
    hold = runs.order("hold", 10)
    run = runs.start("out", "--workers", "2")
    worker = runs.worker_at(10)
    until(lambda: runs.finished("out") >= {*range(8), *range(12, 16)})
    kill(run.pid, *[worker] * both)
    run.wait(60)
    until(lambda: not any(is_alive(pid) for _, pid in runs.calls()))
    before, finished = runs.count(), runs.finished("out")
    hold.unlink()
    runs.run("out", "--workers", "2")
    assert_same(runs, "out", undisturbed)
    assert finished and all(runs.count()[n] == before[n] for n in finished)
    assert all(runs.count()[n] - before[n] == 1 for n in set(range(COUNT)) - finished)


def test_hanging_worker__ends_at_the_deadline_and_the_shard_is_retried(runs, undisturbed):
    runs.order("hang_once", 5)
    runs.run("out", "--deadline", "3")
    assert_same(runs, "out", undisturbed)
    assert runs.count() == {**dict.fromkeys(range(COUNT), 1), 4: 2, 5: 2}


@pytest.mark.parametrize("fault", ["hang", "die"])
def test_picture_that_takes_every_worker__becomes_an_error(runs, undisturbed, fault):
    runs.order(fault, 17)
    runs.run("out", "--deadline", "2")
    (error,) = map(json.loads, (runs.folder / "out" / "errors.jsonl").read_text().splitlines())
    assert error["file_name"] == "0017.png" and "failed 3 times" in error["message"]
    assert runs.count()[17] == 3
    own = runs.content("out")
    assert all(own[n] == undisturbed[n] for n in own if n.endswith(".png"))
    assert len(undisturbed) - len(own) == 1


def test_sigterm__finishes_what_is_in_flight_and_says_that_it_is_unfinished(runs, undisturbed):
    hold = runs.order("hold", 5)
    run = runs.start("out")
    runs.worker_at(5)
    os.kill(run.pid, signal.SIGTERM)
    assert "Finishing" in next(line for line in run.stderr if "Finishing" in line)
    hold.unlink()
    printed, errors = run.communicate(timeout=60)
    assert run.returncode == UNFINISHED and "run the same command again" in errors
    assert "8 of 18" in printed
    assert runs.finished("out") == set(range(8)) == set(runs.count())
    assert not (runs.folder / "out" / "errors.jsonl").exists()
    runs.run("out")
    assert_same(runs, "out", undisturbed)
    assert runs.count() == dict.fromkeys(range(COUNT), 1)


def test_second_client__is_told_who_writes_and_the_first_one_goes_on(runs, undisturbed):
    hold = runs.order("hold", 5)
    first = runs.start("out")
    runs.worker_at(5)
    second = runs.start("out")
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"error: {runs.folder}/out is being written by process {first.pid} on " in errors
    hold.unlink()
    assert first.wait(60) == 0
    assert_same(runs, "out", undisturbed)
