"""Trained models on pictures of other sizes."""

import sys

import evaluate_sizes
import pytest
import torch
from tiny_runs import CONFIG, tiny_overrides

from spatialflow.engine import Trainer


@pytest.fixture
def shown(monkeypatch):
    """The sizes of the images that the models got."""
    sizes = []
    load = evaluate_sizes.load_model

    def load_and_watch(cfg):
        model = load(cfg)
        model.register_forward_pre_hook(
            lambda _, args: sizes.append(tuple(args[0][0]["image"].shape[1:]))
        )
        return model

    monkeypatch.setattr(evaluate_sizes, "load_model", load_and_watch)
    return sizes


def test_table_of_sizes(toy_datasets, tmp_path, monkeypatch, capsys, shown):
    overrides = tiny_overrides(toy_datasets, tmp_path)
    cfg = evaluate_sizes.load_config(str(CONFIG), overrides)
    evaluate_sizes.prepare_datasets(cfg)
    weights = tmp_path / "model.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, weights)
    arguments = ["--models", f"toy/spatialflow_toy.yaml={weights}", "--factors", "1", "1.5"]
    arguments += ["--output", str(tmp_path / "sizes"), "--opts", *overrides]
    monkeypatch.setattr(sys, "argv", ["evaluate_sizes.py", *arguments])
    evaluate_sizes.main()
    table = capsys.readouterr().out
    assert shown == [(128, 160)] * 3 + [(192, 240)] * 3
    head, _, row = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()[-3:]]
    assert head == ["PQ at", "1x", "1.5x"]
    assert row[0] == f"toy/spatialflow_toy.yaml={weights}"
    assert all(0 <= float(value) <= 100 for value in row[1:])
    evaluate_sizes.main()
    assert len(shown) == 6  # nothing was evaluated again
    assert capsys.readouterr().out.splitlines()[-1] == table.splitlines()[-1]
