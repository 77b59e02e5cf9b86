"""The table of an ablation, and going on after a stop."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import run_ablation
from ablation_tables import Replicates
from tiny_runs import tiny_overrides

RESULT = {
    "panoptic_seg": {"PQ": 40.0, "PQ_th": 45.0, "PQ_st": 30.0},
    "bbox": {"AP": 35.0},
    "sem_seg": {"mIoU": 50.0},
}


def other_result(pq):
    return {**RESULT, "panoptic_seg": {**RESULT["panoptic_seg"], "PQ": pq}}


@pytest.fixture
def trained(monkeypatch):
    """The commands of the trainings that were started; each gives a PQ of its own."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        values = dict(zip(command[5::2], command[6::2], strict=True))
        result = json.dumps({"toy": other_result(float(len(commands)))})
        Path(values["OUTPUT_DIR"], "results.json").write_text(result)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(run_ablation.subprocess, "run", run)
    return commands


def ablate(monkeypatch, capsys, *arguments):
    """Run the tool; the PQ it prints for each config."""
    monkeypatch.setattr(sys, "argv", ["run_ablation.py", *map(str, arguments)])
    run_ablation.main()
    printed = capsys.readouterr().out
    rows = [[c.strip() for c in line.split("|")[1:3]] for line in printed.splitlines()]
    return {row[0]: row[1] for row in rows if row and row[0].endswith(".yaml")}, printed


NAMESAKES = ["COCO/spatialflow_R_50_20e.yaml", "released/spatialflow_R_50_20e.yaml"]
TOY = "toy/spatialflow_toy.yaml"


def test_configs_of_the_same_file_name_are_trained_each(tmp_path, monkeypatch, capsys, trained):
    arguments = ["--output", tmp_path, "--seeds", 1, "--configs", *NAMESAKES]
    rows, printed = ablate(monkeypatch, capsys, *arguments)
    assert rows == {NAMESAKES[0]: "1.0", NAMESAKES[1]: "2.0"}
    assert "One run each, seed 1." in printed
    assert len(trained) == 2
    assert ablate(monkeypatch, capsys, *arguments)[0] == rows  # and none of them again
    assert len(trained) == 2


@pytest.mark.parametrize("finished", [True, False])
def test_run_with_other_overrides_is_refused(tmp_path, monkeypatch, capsys, trained, finished):
    arguments = ["--output", tmp_path, "--seeds", 1, "--configs", TOY]
    ablate(monkeypatch, capsys, *arguments, "--opts", "SOLVER.MAX_ITER", 20)
    (results,) = tmp_path.rglob("results.json")
    if not finished:
        results.unlink()
    with pytest.raises(SystemExit) as error:
        ablate(monkeypatch, capsys, *arguments, "--opts", "SOLVER.MAX_ITER", 30)
    message = str(error.value)
    assert str(results.parent) in message and "--output" in message
    assert "['SOLVER.MAX_ITER', '20'] there, ['SOLVER.MAX_ITER', '30'] asked for" in message
    assert len(trained) == 1


def test_config_that_changed_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch, capsys, trained
):
    config = tmp_path / "mine.yaml"
    config.write_text("SOLVER:\n  MAX_ITER: 20\n")
    monkeypatch.setattr(run_ablation.model_zoo, "get_config_file", lambda name: str(config))
    arguments = ["--output", tmp_path / "out", "--seeds", 1, "--configs"]
    ablate(monkeypatch, capsys, *arguments, "b.yaml")
    config.write_text("SOLVER:\n  MAX_ITER: 30\n")
    with pytest.raises(SystemExit, match="config_sha256: "):
        ablate(monkeypatch, capsys, *arguments, "a.yaml", "b.yaml")
    assert len(trained) == 1


def test_arms_of_one_config_with_their_own_overrides(tmp_path, monkeypatch, capsys, trained):
    no_flows = f"{TOY} MODEL.SPATIALFLOW.FLOWS '[]'"
    arguments = ["--output", tmp_path, "--seeds", 1, 2, "--configs", TOY, no_flows]
    printed = ablate(monkeypatch, capsys, *arguments, "--opts", "SOLVER.MAX_ITER", 20)[1]
    flows = [run_ablation.load_config(c[3], c[5:]).MODEL.SPATIALFLOW.FLOWS for c in trained]
    assert [len(f) for f in flows] == [4, 0, 4, 0]
    assert all("SOLVER.MAX_ITER" in command for command in trained)
    # PQ 1 and 3 with flows, 2 and 4 without.
    assert f"| {no_flows} | 3.0 ± 1.4" in printed and "+1.0 ± 0.0" in printed
    assert len(list(tmp_path.rglob("ablation_run.json"))) == 4


def test_bootstrap_keeps_the_predictions(tmp_path, monkeypatch, capsys, trained):
    asked = []

    def resample(folders, n):
        asked.append((folders, n))
        return Replicates(np.arange(n), np.arange(n))

    monkeypatch.setattr(run_ablation, "resample", resample)
    arguments = ["--output", tmp_path, "--seeds", 1, 2, "--bootstrap", 5, "--configs", *NAMESAKES]
    ablate(monkeypatch, capsys, *arguments)
    assert [n for _, n in asked] == [5, 5]
    written = [values[values.index("OUTPUT_DIR") + 1] for values in trained]
    assert [str(f) for folders, _ in asked for f in folders] == [written[i] for i in (0, 2, 1, 3)]
    configs = [run_ablation.load_config(c[3], c[5:]) for c in trained]
    assert all(cfg.TEST.SAVE_PREDICTIONS for cfg in configs)


def test_files_of_an_unknown_run_are_refused(tmp_path, monkeypatch, capsys, trained):
    folder = run_ablation.run_folder(tmp_path, TOY, 1)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"toy": RESULT}))
    with pytest.raises(SystemExit, match="has files but no ablation_run.json"):
        ablate(monkeypatch, capsys, "--output", tmp_path, "--seeds", 1, "--configs", TOY)


def test_unfinished_run_is_resumed(tmp_path, monkeypatch, capsys, trained):
    arguments = ["--output", tmp_path, "--seeds", 1, "--configs", TOY]
    ablate(monkeypatch, capsys, *arguments)
    (results,) = tmp_path.rglob("results.json")
    results.unlink()
    (results.parent / "last_checkpoint").write_text("model_0000001.pth")
    assert ablate(monkeypatch, capsys, *arguments)[0] == {TOY: "2.0"}
    assert trained[0] == trained[1] and "--resume" in trained[1]


def test_seed_and_folder_are_the_tools_whatever_the_overrides(
    tmp_path, monkeypatch, capsys, trained
):
    arguments = ["--output", tmp_path, "--seeds", 1, 2, "--configs", TOY]
    ablate(monkeypatch, capsys, *arguments, "--opts", "SEED", 5, "OUTPUT_DIR", "elsewhere")
    parse = run_ablation.load_config
    seeds = [parse(command[3], command[5:]).SEED for command in trained]
    assert seeds == [1, 2]


def test_failed_run_names_its_log(tmp_path):
    run = run_ablation.describe_run(TOY, 1, ["SOLVER.AMP.ENABLED", "True"])
    run_ablation.claim(tmp_path / "run", run)
    with pytest.raises(SystemExit, match="seed 1 failed; see .*stdout.txt"):
        run_ablation.train(run, tmp_path / "run")
    assert "SOLVER.AMP.ENABLED needs CUDA" in (tmp_path / "run" / "stdout.txt").read_text()


def test_equal_processor_time_gives_each_config_its_iterations(
    tmp_path, monkeypatch, capsys, trained
):
    seconds = dict(zip(NAMESAKES, (2.0, 0.5), strict=True))
    monkeypatch.setattr(
        run_ablation, "seconds_per_iteration", lambda arms: [seconds[arm.config] for arm in arms]
    )
    arguments = ["--output", tmp_path, "--seeds", 1, "--cpu-seconds", 10, "--configs", *NAMESAKES]
    _, printed = ablate(monkeypatch, capsys, *arguments)
    iterations = [command[command.index("SOLVER.MAX_ITER") + 1] for command in trained]
    assert iterations == ["5", "20"]
    assert f"iterations: {NAMESAKES[0]} 5, {NAMESAKES[1]} 20." in printed
    # A stopped ablation goes on with what was timed first.
    seconds[NAMESAKES[0]] = 1.0
    ablate(monkeypatch, capsys, *arguments)
    assert len(trained) == 2


def test_timing_runs_iterations_of_the_config(toy_datasets, tmp_path):
    overrides = [*map(str, tiny_overrides(toy_datasets, tmp_path))]
    arms = [run_ablation.Arm(TOY, TOY, overrides)] * 2
    times = run_ablation.seconds_per_iteration(arms)
    assert len(times) == 2 and all(0 < t < 60 for t in times)
