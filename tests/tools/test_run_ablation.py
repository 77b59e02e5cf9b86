"""The table of an ablation, and going on after a stop."""

import json

import pytest
import run_ablation

RESULT = {
    "panoptic_seg": {"PQ": 40.0, "PQ_th": 45.0, "PQ_st": 30.0},
    "bbox": {"AP": 35.0},
    "sem_seg": {"mIoU": 50.0},
}


def other_result(pq):
    return {**RESULT, "panoptic_seg": {**RESULT["panoptic_seg"], "PQ": pq}}


def test_table_has_mean_and_sample_deviation():
    table = run_ablation.as_table({"a": [other_result(39), other_result(41)], "b": [RESULT]})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["config", "PQ", "PQ Th", "PQ St", "box AP", "mIoU"]
    assert rows[2][:3] == ["a", "40.0 ± 1.4", "45.0 ± 0.0"]
    assert rows[3][:2] == ["b", "40.0 ± 0.0"]


def test_finished_run_is_not_repeated(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text(json.dumps({"toy": RESULT}))
    monkeypatch.setattr(run_ablation.subprocess, "run", pytest.fail)
    assert run_ablation.train("no such config", 1, tmp_path, []) == RESULT


def test_failed_run_names_its_log(tmp_path):
    with pytest.raises(SystemExit, match="seed 1 failed; see .*stdout.txt"):
        run_ablation.train("no such config", 1, tmp_path / "run", [])
    assert "no such config" in (tmp_path / "run" / "stdout.txt").read_text()
