"""Runs that are killed or asked to stop go on as if nothing had been."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from recorded_run import make_trainer, run, stop_parent
from tiny_runs import CONFIG, tiny_config, tiny_overrides

from spatialflow.engine import launch
from spatialflow.engine.resuming import STOPPED, cut_off
from spatialflow.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
DISTURBED = REPOSITORY / "tests" / "helpers" / "disturbed.py"
SBATCH = REPOSITORY / "tools" / "slurm" / "train.sbatch"
END = 8
NOTHING_ELSE = ["DATASETS.TEST", (), "SOLVER.STEPS", (6,)]
SRUN = """#!/bin/bash
# SLURM's srun: each task is a process group of its own; the exit code is the highest one.
shift  # --wait
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i setsid "$@" &
    tasks+=($!)
done
highest=0
for task in "${tasks[@]}"; do
    wait "$task"
    code=$?
    ((code > highest)) && highest=$code
done
exit $highest
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo localhost || echo "$@" >> "$SCONTROL_LOG"
"""


@pytest.fixture(scope="module")
def undisturbed(toy_datasets, tmp_path_factory):
    """Weights and losses of a run in one process that nothing happened to."""
    output = tmp_path_factory.mktemp("undisturbed")
    trainer, rows = run(tiny_config(toy_datasets, output, END, NOTHING_ELSE))
    return trainer.model.state_dict(), rows


@pytest.fixture(scope="module")
def requeued(toy_datasets, tmp_path_factory):
    """A SLURM job of two processes that one of them was asked to stop, and what SLURM was told.

    Returns the job as a function of the number of processes, the exit code of the first start, the
    log of scontrol, and the run's folder.
    """
    folder = tmp_path_factory.mktemp("slurm")
    for name, script in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    log, output = folder / "scontrol.log", folder / "out"

    def job(processes):
        slurm = {
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NTASKS": processes,
            "SLURM_NTASKS_PER_NODE": processes,
            "SCONTROL_LOG": log,
            "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        workers = ["DATALOADER.NUM_WORKERS", 1]
        arguments = command(toy_datasets, output, workers)
        return start([SBATCH, *arguments], "1:4:SIGTERM", slurm)

    done = job(2)
    return job, done, log, output


def command(datasets, output, overrides=()):
    overrides = [*tiny_overrides(datasets, output, END), *NOTHING_ELSE, *overrides]
    return ["--import", DISTURBED, "--config-file", CONFIG, *overrides]


def start(words, disturb, environment=()):
    environment = {**os.environ, "PYTHONPATH": REPOSITORY, "DISTURB": disturb, **dict(environment)}
    return subprocess.run(
        list(map(str, words)),
        cwd=REPOSITORY,
        env={name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=240,
    )


def check_equal(output, undisturbed):
    """The metrics of all iterations and the final weights are those of the undisturbed run."""
    weights, rows = undisturbed
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(END))
    for i, line in enumerate(lines):  # the median of the iterations so far
        expected = {name: np.median([row[name] for row in rows[: i + 1]]) for name in rows[0]}
        assert {name: line[name] for name in rows[0]} == pytest.approx(expected, rel=1e-4)
    final = torch.load(output / "model_final.pth", weights_only=True)["model"]
    assert final.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(final[name], value, rtol=1e-4, atol=1e-6, msg=name)


class Ask(HookBase):
    """Sends this process a signal in an iteration."""

    def __init__(self, iteration, number=signal.SIGUSR1):
        self.iteration = iteration
        self.number = number

    def before_step(self):
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.number)


def stopped_run(cfg, iteration):
    trainer, _ = make_trainer(cfg)
    trainer.register_hooks([Ask(iteration)])
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == STOPPED == 75


def test_torchrun_restarts_behind_a_kill_and_nothing_is_different(
    undisturbed, toy_datasets, tmp_path
):
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    train = [REPOSITORY / "train_net.py", "--resume", *command(toy_datasets, tmp_path)]
    done = start([sys.executable, "-m", *torchrun, *train], "1:4:SIGKILL")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Signal 9 (SIGKILL)" in done.stderr or "exitcode: -9" in done.stderr
    assert "Starting training from iteration 4" in done.stdout
    check_equal(tmp_path, undisturbed)


def test_slurm_job_that_is_asked_to_stop_is_requeued(requeued):
    _, done, log, output = requeued
    assert done.returncode == STOPPED, done.stderr[-3000:]
    assert log.read_text() == "requeue 4711\n"
    assert "A signal asked to stop: done behind iteration 4. --resume goes on." in done.stdout
    assert (output / "last_checkpoint").read_text() == "model_0000004.pth"


def test_requeued_job_goes_on_with_one_process_as_if_nothing_had_been(requeued, undisturbed):
    job, _, log, output = requeued
    log.unlink(missing_ok=True)
    done = job(1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not log.exists()
    assert "Starting training from iteration 5" in done.stdout
    assert "was written by 2 processes, and 1 go on" in done.stdout
    check_equal(output, undisturbed)


def test_restarts_on_several_machines_need_a_store_of_their_own(monkeypatch):
    environment = {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), "0"),
        **dict.fromkeys(("WORLD_SIZE", "GROUP_WORLD_SIZE"), "2"),
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        launch(print, device="cpu")


def test_another_total_batch_is_refused(toy_datasets, tmp_path):
    run(tiny_config(toy_datasets, tmp_path, 1, ["DATASETS.TEST", (), "SOLVER.STEPS", ()]))
    four = ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.REFERENCE_IMS_PER_BATCH", 4, *NOTHING_ELSE]
    trainer, _ = make_trainer(tiny_config(toy_datasets, tmp_path, END, four))
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH 2, this one has 4.*MODEL\.WEIGHTS"):
        trainer.resume_or_load(resume=True)


def test_schedule_that_scales_with_the_processes_is_refused(toy_datasets, tmp_path):
    """REFERENCE_WORLD_SIZE makes another batch of another number of processes."""
    run(tiny_config(toy_datasets, tmp_path, 1, ["DATASETS.TEST", (), "SOLVER.STEPS", ()]))
    scaled = ["SOLVER.REFERENCE_WORLD_SIZE", 2, *NOTHING_ELSE]
    trainer, _ = make_trainer(tiny_config(toy_datasets, tmp_path, END, scaled))
    with pytest.raises(ValueError, match="IMS_PER_BATCH 2, this one has 1, over all processes"):
        trainer.resume_or_load(resume=True)


def test_sigusr1_in_one_process(undisturbed, toy_datasets, tmp_path):
    cfg = tiny_config(toy_datasets, tmp_path, END, NOTHING_ELSE)
    handler = signal.getsignal(signal.SIGUSR1)
    stopped_run(cfg, 2)
    assert signal.getsignal(signal.SIGUSR1) == handler
    _, rows = run(cfg, resume=True)
    assert rows == undisturbed[1][3:]


def test_signal_in_the_last_iteration_changes_nothing(toy_datasets, tmp_path):
    trainer, _ = make_trainer(tiny_config(toy_datasets, tmp_path, 2, NOTHING_ELSE))
    trainer.register_hooks([Ask(1)])
    trainer.train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_checkpoint_of_a_stop_counts_as_one_of_those_to_keep(toy_datasets, tmp_path):
    keep = ["SOLVER.CHECKPOINT_MAX_TO_KEEP", 1, *NOTHING_ELSE]
    cfg = tiny_config(toy_datasets, tmp_path, 4, keep)
    stopped_run(cfg, 2)
    assert (tmp_path / "model_0000002.pth").exists()
    run(cfg, resume=True)
    kept = {path.name for path in tmp_path.glob("model_*.pth")}
    assert kept == {"model_0000003.pth", "model_final.pth"}


def test_signal_to_the_process_that_started_the_others_reaches_them(tmp_path):
    with pytest.raises(SystemExit) as stop:
        launch(stop_parent, 2, args=(str(tmp_path),), device="cpu")
    assert stop.value.code == STOPPED
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


@pytest.mark.parametrize(
    "lines, kept",
    [
        ([0, 1, 2], 2),
        ([0, 1], 2),
        ([0, 1, 2, 3, 0, 1, 2], 6),  # an earlier run wrote there, too
        ([5], 0),
        ([], 0),
    ],
)
def test_metrics_that_come_again_are_cut_off(tmp_path, lines, kept):
    texts = [json.dumps({"iteration": i, "total_loss": 1.5}) + "\n" for i in lines]
    path = tmp_path / "metrics.json"
    path.write_text("".join(texts) + '{"iteration": 1, "total_l')  # and a kill cut this one short
    with path.open("a") as writer:
        cut_off(path, 2)
        writer.write("next")
    assert path.read_text() == "".join(texts[:kept]) + "next"


def test_old_checkpoints_without_batching_are_resumed(toy_datasets, tmp_path, caplog):
    cfg = tiny_config(toy_datasets, tmp_path, 2, ["DATASETS.TEST", (), "SOLVER.STEPS", ()])
    run(cfg)
    path = tmp_path / "model_final.pth"
    content = torch.load(path, weights_only=True)
    del content["trainer"]["batching"], content["trainer"]["hooks"]["OneRunOfMetrics"]
    torch.save(content, path)
    caplog.set_level(logging.WARNING)
    trainer, _ = make_trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    assert "processes" not in caplog.text
