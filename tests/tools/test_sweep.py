"""Sweeping the merge's thresholds on raw outputs."""

import csv
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from raw_scenes import MERGE, evaluate_noisy

from spatialflow.cli import run_command
from spatialflow.modeling.panoptic import HeuristicMerge
from spatialflow.saved.raw_outputs import INDEX, RawOutputs
from spatialflow.tools.sweep import combinations, rows_of, sweep

main = partial(run_command, "sweep")

OWN = {
    "score_thresh": 0.4,
    "overlap_thresh": 0.5,
    "stuff_area_limit": 20,
    "box_fill_min_free": 0.6,
}


@pytest.fixture
def evaluated(register, tmp_path):
    """A folder of raw outputs, and the PQ of their evaluation."""
    return str(tmp_path), evaluate_noisy(register, tmp_path, copies=2)


def test_combinations():
    base = HeuristicMerge(score_thresh=0.4)
    found = combinations(base, {"score_thresh": [0.3, 0.4], "stuff_area_limit": [10, 4900]})
    assert [(s.score_thresh, s.stuff_area_limit) for s in found] == [
        (0.4, 4900),
        (0.3, 10),
        (0.3, 4900),
        (0.4, 10),
    ]
    assert combinations(base, {}) == [base]


@pytest.mark.parametrize("name, value", [("score_thresh", 0.99), ("stuff_area_limit", 10_000)])
def test_each_threshold_does_what_it_does_in_the_merge(evaluated, name, value):
    folder, own = evaluated
    raw = RawOutputs.open(folder)
    merges = combinations(raw.merge, {name: [value]})
    first, second = sorted(rows_of(merges, sweep(raw, merges)), key=lambda r: not r["is_config"])
    assert {k: first[k] for k in OWN} == OWN
    assert first["PQ"] == pytest.approx(own["PQ"], abs=1e-12)
    lost = "PQ_th" if name == "score_thresh" else "PQ_st"
    assert second[lost] == 0 < first[lost]


def test_other_evaluations_agree(register, tmp_path, evaluated):
    """The sweep at other thresholds equals an evaluation that has them from the start."""
    folder, _ = evaluated
    raw = RawOutputs.open(folder)
    merges = combinations(raw.merge, {"overlap_thresh": [0.0], "box_fill_min_free": [None]})
    other = replace(MERGE, overlap_thresh=0.0, box_fill_min_free=None)
    metrics = evaluate_noisy(register, tmp_path / "other", copies=2, merge=other)
    row = next(r for r in rows_of(merges, sweep(raw, merges)) if not r["is_config"])
    assert row["PQ"] == pytest.approx(metrics["PQ"], abs=1e-12)


def test_processes_give_the_numbers_of_one(evaluated):
    raw = RawOutputs.open(evaluated[0])
    merges = combinations(raw.merge, {"score_thresh": [0.3, 0.7]})
    alone, together = (sweep(raw, merges, workers) for workers in (1, 2))
    for a, b in zip(alone, together, strict=True):
        assert (a.table == b.table).all()


def test_command(evaluated, tmp_path, capsys):
    folder, own = evaluated
    files = {kind: tmp_path / f"table.{kind}" for kind in ("json", "csv")}
    arguments = ["--score-thresh", "0.3", "0.99", "--box-fill-min-free", "off", "0.6"]
    main(
        [folder, *arguments, "--workers", "1"]
        + ["--json-out", str(files["json"]), "--csv-out", str(files["csv"])]
    )
    rows = json.loads(files["json"].read_text())
    assert len(rows) == 5  # four combinations, and the evaluation's own settings
    assert [r["PQ"] for r in rows] == sorted((r["PQ"] for r in rows), reverse=True)
    assert [r["PQ"] for r in rows if r["is_config"]] == [pytest.approx(own["PQ"])]
    with open(files["csv"], newline="") as f:
        assert [float(r["PQ"]) for r in csv.DictReader(f)] == [r["PQ"] for r in rows]
    out = capsys.readouterr().out
    assert out.count("as evaluated") == 1 and "off" in out


@pytest.mark.parametrize("option", ["--json-out", "--csv-out"])
def test_inputs_are_not_overwritten(evaluated, option):
    folder, _ = evaluated
    for path in (RawOutputs.open(folder).truth["panoptic_json"], os.path.join(folder, INDEX)):
        before = Path(path).read_bytes()
        with pytest.raises(SystemExit, match="would be written over the input"):
            main([folder, "--workers", "1", option, path])
        assert Path(path).read_bytes() == before


def test_output_without_ground_truth(evaluated, capsys):
    folder, _ = evaluated
    raw = RawOutputs.open(folder)
    with open(raw.truth["panoptic_json"], "w") as f:
        json.dump({"images": [], "annotations": [], "categories": []}, f)
    with pytest.raises(SystemExit, match="does not annotate image 0"):
        main([folder, "--workers", "1"])
