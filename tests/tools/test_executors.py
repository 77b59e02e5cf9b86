"""Tasks through executors: lost ones, the order of results, what is refused."""

import builtins
import random
import sys
from concurrent.futures import Future

import pytest

from spatialflow.errors import UserError
from spatialflow.tools.executors import Settings, open_executor
from spatialflow.tools.executors.drive import Failure, drive, in_order


class Shuffled:
    """An executor that ends its tasks in any order, and loses some.

    Attributes:
        most: how many tasks were in flight at once.
    """

    def __init__(self, lost: int = 0, seed: int = 0):
        self._lost, self._random = lost, random.Random(seed)
        self._waiting: list = []
        self.most = 0

    def submit(self, function, *args):
        future = Future()
        self._waiting.append((future, function, args))
        self.most = max(self.most, len(self._waiting))
        return future

    def slots(self):
        if len(self._waiting) == 3:
            self._end_one()
        return 3

    def _end_one(self):
        future, function, args = self._waiting.pop(self._random.randrange(len(self._waiting)))
        if self._lost:
            self._lost -= 1
            future.set_exception(ConnectionError("worker lost"))
            return
        try:
            future.set_result(function(*args))
        except Exception as e:
            future.set_exception(e)


class Ending(Shuffled):
    """The same, and each task ends as it is submitted."""

    def submit(self, function, *args):
        future = super().submit(function, *args)
        self._end_one()
        return future


def test_lost_tasks_are_tried_again_and_given_up():
    assert dict(drive(Ending(lost=5), str, range(4))) == {i: str(i) for i in range(4)}
    outcome = dict(drive(Ending(lost=1000), str, range(2)))
    assert outcome == dict.fromkeys(range(2), Failure("ConnectionError: worker lost"))


def test_stopped__no_task_is_begun_and_what_is_in_flight_is_finished():
    taken, done = [], []
    tasks = (taken.append(i) or i for i in range(100))
    for task, _ in drive(Ending(), str, tasks, lambda: len(done) >= 6):
        done.append(task)
    assert sorted(done) == taken and 6 <= len(taken) < 12


def test_mistake_of_the_user__ends_the_work_after_what_is_in_flight():
    def fail(number):
        if number == 4:
            raise UserError("the disk is full")
        return number

    done = []
    with pytest.raises(UserError, match="the disk is full"):
        done += (task for task, _ in drive(Ending(), fail, range(100)))
    done = []
    with pytest.raises(UserError):
        for task, _ in drive(Ending(), fail, range(100)):
            done.append(task)
    assert {*range(4)} <= {*done} and max(done) < 8


@pytest.mark.parametrize("seed", range(5))
def test_in_order__whatever_the_order_of_the_ends(seed):
    jobs = list(range(-7 * 40, 0))  # whole chunks, whose last three the executor would keep
    executor = Shuffled(seed=seed)
    results = in_order(executor, abs, jobs, chunk=7)
    assert [next(results) for _ in range(7 * 30)] == list(map(abs, jobs[: 7 * 30]))
    assert executor.most == 3


def test_in_order__a_task_that_always_fails():
    with pytest.raises(RuntimeError, match="6 tries failed, the last one by ConnectionError"):
        list(in_order(Ending(lost=1000), abs, range(5)))


def test_unknown_executor():
    with pytest.raises(UserError, match="--executor is one of processes, dask, ray, not 'slurm'"):
        open_executor("slurm", Settings())


@pytest.mark.parametrize("name, module, extra", [("dask", "distributed", "scale"), ("ray",) * 3])
def test_executor_without_its_package__says_what_to_install(name, module, extra, monkeypatch):
    found = builtins.__import__

    def absent(wanted, *args, **kwargs):
        if wanted.split(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return found(wanted, *args, **kwargs)

    monkeypatch.delitem(sys.modules, f"spatialflow.tools.executors.{name}_executor", raising=False)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=rf"needs {module}.*pip install 'spatialflow\[{extra}\]'"):
        open_executor(name, Settings())


def test_no_scheduler_at_the_address():
    pytest.importorskip("distributed")
    import dask

    settings = Settings(scheduler="tcp://127.0.0.1:1")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(UserError, match="No Dask scheduler answers at tcp://127.0.0.1:1"),
    ):
        open_executor("dask", settings)
