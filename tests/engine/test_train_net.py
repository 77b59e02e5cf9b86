"""The command as users start it."""

import ast
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from recorded_run import run
from tiny_runs import CONFIG, tiny_config, tiny_overrides

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN_NET = str(REPOSITORY / "train_net.py")


def here(monkeypatch, *arguments):
    """Run train_net.py in this process, without a new Python."""
    monkeypatch.setattr(sys, "argv", [TRAIN_NET, *map(str, arguments)])
    runpy.run_path(TRAIN_NET, run_name="__main__")


def start(*command):
    """Run a command in a new process, from the repository's folder."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_train_then_evaluate_then_evaluate_the_last_checkpoint(
    monkeypatch, toy_datasets, tmp_path, capfd
):
    overrides = tiny_overrides(toy_datasets, tmp_path, max_iter=2)
    here(monkeypatch, "--config-file", CONFIG, *overrides)
    trained = json.loads((tmp_path / "results.json").read_text())
    weights = tmp_path / "model_final.pth"
    for arguments in (["MODEL.WEIGHTS", weights], []):
        (tmp_path / "results.json").unlink()
        capfd.readouterr()
        resume = [] if arguments else ["--resume"]
        here(monkeypatch, "--config-file", CONFIG, "--eval-only", *resume, *overrides, *arguments)
        assert json.loads((tmp_path / "results.json").read_text()) == trained
        printed = capfd.readouterr().out
        for row in ("All", "Things", "Stuff"):
            assert re.search(rf"\|\s+{row} \|( +[\d.-]+ \|){{3}}", printed)
        assert "box AP" in printed and "mask AP" in printed and "mIoU" in printed


def test_demo_gives_the_same_weights_each_time(monkeypatch, toy_datasets, tmp_path):
    """By the seed that stands in the config of ``make demo``."""
    weights = []
    for name in ("one", "two"):
        overrides = tiny_overrides(toy_datasets, tmp_path / name, max_iter=2)
        seed = overrides.index("SEED")
        del overrides[seed : seed + 2]
        here(monkeypatch, "--config-file", CONFIG, *overrides)
        weights.append(torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"])
    for key, value in weights[0].items():
        assert torch.equal(weights[1][key], value), key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "nowhere.yaml"], "nowhere.yaml"),
        (["--config-file", CONFIG, "SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LRR"),
        (["--config-file", CONFIG, "MODEL.DEVICE", "cuda"], "MODEL.DEVICE cpu"),
        (["--config-file", CONFIG, "DATASETS.TRAIN", "('unheard_of',)"], "unheard_of"),
        (["--config-file", CONFIG, "SOLVER.IMS_PER_BATCH", "4"], "SOLVER.BASE_LR"),
        (["--config-file", CONFIG, "MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth"),
        (["--config-file", CONFIG, "--eval-only"], "MODEL.WEIGHTS is empty"),
    ],
)
def test_mistakes_end_in_one_message(
    monkeypatch, toy_datasets, tmp_path, capfd, arguments, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    split = next((i for i, a in enumerate(arguments) if str(a).isupper()), len(arguments))
    overrides = tiny_overrides(toy_datasets, tmp_path)
    with pytest.raises(SystemExit) as stop:
        here(monkeypatch, *arguments[:split], *overrides, *arguments[split:])
    assert stop.value.code.startswith("error: ")
    assert message in stop.value.code
    assert "Traceback" not in capfd.readouterr().err


def test_no_config_is_wrong_usage(monkeypatch, capfd):
    with pytest.raises(SystemExit) as stop:
        here(monkeypatch)
    assert stop.value.code == 2
    assert "error: --config-file is missing" in capfd.readouterr().err


def test_datasets_of_other_classes_end_in_one_message(monkeypatch, toy_datasets, tmp_path):
    toy = toy_datasets / "toy"
    content = json.loads((toy / "panoptic_val.json").read_text())
    content["categories"].append({"id": 99, "name": "unicorn", "isthing": 1})
    (tmp_path / "more.json").write_text(json.dumps(content))
    overrides = tiny_overrides(toy_datasets, tmp_path / "out")
    entries = ast.literal_eval(overrides[1])
    more = (toy / "val", toy / "panoptic_val", tmp_path / "more.json")
    entries.append(["more_val", *map(str, more)])
    names = ("tiny_val", "more_val")
    changed = ["DATASETS.REGISTER", entries, "DATASETS.TEST", names, "MODEL.WEIGHTS", "w.pth"]
    with pytest.raises(
        SystemExit, match=r"error: .* dataset tiny_val, but \d+ for dataset more_val"
    ):
        here(monkeypatch, "--config-file", CONFIG, "--eval-only", *overrides, *changed)


def test_weights_of_other_classes_end_in_one_message(monkeypatch, toy_datasets, tmp_path):
    cfg = tiny_config(toy_datasets, tmp_path, 1, ["DATASETS.TEST", (), "SOLVER.STEPS", ()])
    trainer, _ = run(cfg)
    state = trainer.model.state_dict()
    state["stuff_head.predictor.weight"] = torch.zeros(54, 32, 1, 1)
    torch.save({"model": state}, tmp_path / "other.pth")
    overrides = [*tiny_overrides(toy_datasets, tmp_path), "MODEL.WEIGHTS", tmp_path / "other.pth"]
    with pytest.raises(SystemExit, match=r"MODEL\.SEM_SEG_HEAD\.NUM_CLASSES") as stop:
        here(monkeypatch, "--config-file", CONFIG, "--eval-only", *overrides)
    assert "(54, 32, 1, 1) in the file, (5, 32, 1, 1) in the model" in stop.value.code


def test_torchrun_trains_in_two_processes(toy_datasets, tmp_path):
    overrides = tiny_overrides(toy_datasets, tmp_path / "two", max_iter=2)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    process = start(*torchrun, TRAIN_NET, "--config-file", CONFIG, *overrides)
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.terminate()
    assert process.returncode == 0, errors[-3000:]
    assert "World size: 2" in output
    assert (tmp_path / "two" / "log.txt.rank1").exists()
    _, rows = run(tiny_config(toy_datasets, tmp_path / "one", max_iter=2))
    logged = (tmp_path / "two" / "metrics.json").read_text().splitlines()
    losses = next(row for row in map(json.loads, logged) if "total_loss" in row)
    assert losses["total_loss"] == pytest.approx(
        sum(row["total_loss"] for row in rows) / 2, rel=1e-4
    )


def test_killed_run_goes_on_from_the_last_checkpoint(toy_datasets, tmp_path):
    overrides = ["SOLVER.STEPS", (), "DATASETS.TEST", ()]
    text = [str(o) for o in overrides]
    arguments = [*tiny_overrides(toy_datasets, tmp_path / "killed", max_iter=10**6), *text]
    process = start(TRAIN_NET, "--config-file", CONFIG, *arguments)
    try:
        last, deadline = tmp_path / "killed" / "last_checkpoint", time.monotonic() + 90
        while not (last.exists() and int(last.read_text()[6:13]) >= 3):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    stopped_at = int(last.read_text()[6:13])
    end = stopped_at + 3
    resumed, rows = run(tiny_config(toy_datasets, tmp_path / "killed", end, overrides), resume=True)
    assert resumed.start_iter == stopped_at + 1
    _, whole = run(tiny_config(toy_datasets, tmp_path / "whole", end, overrides))
    # Another process may round the last digits otherwise.
    for found, expected in zip(rows, whole[resumed.start_iter :], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
