"""The benchmark of scoring: both sides get sound data and agree."""

import sys

import benchmark_evaluation


def test_prints_times_and_that_the_numbers_agree(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark_evaluation.py", "--images", "3", "--rounds", "2"])
    benchmark_evaluation.main()
    *rounds, last = capsys.readouterr().out.splitlines()
    assert [float(line.rsplit(" ", 1)[1]) < 1e-9 for line in rounds] == [True, True]
    assert last.startswith("median ratio ")
