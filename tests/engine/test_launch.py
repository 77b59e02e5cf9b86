"""Several processes on the CPU: the same losses, the same numbers, and one message on an error."""

import json
import os
import sys

import pytest
from recorded_run import everywhere, in_processes, run, syncbn_in_processes
from tiny_runs import tiny_config

from spatialflow.checkpoint import SafeCheckpointer
from spatialflow.engine import Trainer, launch
from spatialflow.errors import UserError, exit_on_user_error


@pytest.fixture(scope="module")
def reports(toy_datasets, tmp_path_factory):
    """What two processes had to report, and the folder of their run, which ended in an error."""
    output = tmp_path_factory.mktemp("two")
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        launch(in_processes, 2, args=(str(toy_datasets), str(output)), device="cpu")
    assert stop.value.code == "error: file.json is wrong"
    return [json.loads((output / f"report_{rank}.json").read_text()) for rank in (0, 1)], output


def bug():
    raise ZeroDivisionError


def test_one_process_is_this_one():
    seen = []
    launch(lambda *args: seen.append((os.getpid(), args)), args=(1, 2))
    assert seen == [(os.getpid(), (1, 2))]


def test_two_processes_train_and_evaluate_as_one(reports, toy_datasets, tmp_path):
    (main, other), output = reports
    assert [main["local"], other["local"]] == [[0, 2], [1, 2]]
    assert main["world_size"] == 2 and main["device_ids"] is None
    trainer, rows = run(tiny_config(toy_datasets, tmp_path))
    for one, two in zip(rows, main["rows"], strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    SafeCheckpointer(trainer.model).load(str(output / "model_final.pth"))
    Trainer.test(trainer.cfg, trainer.model)
    by_one, by_two = (json.loads((f / "results.json").read_text()) for f in (tmp_path, output))
    assert by_one == by_two
    # There was something to evaluate: AP without detections would be null.
    assert (
        by_one["tiny_val"]["sem_seg"]["mIoU"] > 0 and by_one["tiny_val"]["segm"]["AP"] is not None
    )


def test_nan_in_one_process_stops_all_with_its_images(reports):
    (main, other), _ = reports
    assert main["message"] == other["message"]
    assert "iteration 1;" in main["message"]
    assert "process 1: " in main["message"] and "process 0: " not in main["message"]
    assert main["message"].count("  image ") == 1


def test_syncbn_everywhere_is_bn_over_all_processes(toy_datasets, tmp_path):
    launch(syncbn_in_processes, 2, args=(str(toy_datasets), str(tmp_path / "two")), device="cpu")
    rows = json.loads((tmp_path / "two" / "report_0.json").read_text())
    cfg = tiny_config(toy_datasets, tmp_path / "one", 4, everywhere("BN"))
    _, expected = run(cfg)
    for one, two in zip(expected[:3], rows[:3], strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    # In the last iteration one of the processes had no regions.
    assert set(rows[3]) == set(expected[3]) and rows[3]["loss_mask"] > 0


def test_environment_is_as_before(reports):
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def test_processes_start_where_the_affinity_of_a_process_is_unknown(monkeypatch):
    """On macOS and Windows, where the threads are shared out by the number of all cores."""
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS")
    seen = []
    module = sys.modules["spatialflow.engine.launch"]
    threads = lambda *_: seen.append(os.environ["OMP_NUM_THREADS"])  # noqa: E731
    monkeypatch.setattr(module, "start_processes", threads)
    launch(bug, 2, device="cpu")
    assert seen == ["3"]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match=r"--num-gpus 2, but torch finds 1 CUDA device"):
        launch(bug, 2, device="cuda")


def test_processes_asked_for_under_torchrun_are_refused(monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="--num-gpus"):
        launch(bug, 2, device="cpu")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), exit_on_user_error():
        launch(bug)
