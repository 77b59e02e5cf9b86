"""The average of the weights: what it is, who takes it, and that resuming keeps it."""

import pytest
import torch
from recorded_run import run
from tiny_runs import tiny_config
from torch import nn

from spatialflow.checkpoint.safe import load_tensors
from spatialflow.engine.ema import WeightAverage

ON = ["SOLVER.EMA_DECAY", 0.9]


def test_the_average_follows_its_formula():
    model = nn.BatchNorm1d(2)
    average, mean = WeightAverage(model, 0.2), None
    for n in range(6):
        with torch.no_grad():
            model.weight.fill_(n * n)
            model.running_var.fill_(3.0 * n)
            model.num_batches_tracked.fill_(n)
        average.after_step()
        decay = min(0.2, (1 + n) / (10 + n))
        weights = torch.tensor([n * n, 3.0 * n])
        mean = weights if mean is None else decay * mean + (1 - decay) * weights
        found = average.model
        torch.testing.assert_close(torch.stack([found.weight[0], found.running_var[0]]), mean)
        assert found.num_batches_tracked == n


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ValueError, match="SOLVER.EMA_DECAY"):
        WeightAverage(nn.Linear(1, 1), decay)


def test_checkpoints_hold_the_average_and_resuming_is_exact(toy_datasets, tmp_path):
    _, rows = run(tiny_config(toy_datasets, tmp_path / "whole", overrides=ON))
    folder = tmp_path / "stopped"
    _, first = run(tiny_config(toy_datasets, folder, max_iter=2, overrides=ON))
    trainer, last = run(tiny_config(toy_datasets, folder, max_iter=4, overrides=ON), resume=True)
    assert first + last == rows
    whole, stopped = (
        load_tensors(str(x / "model_final.pth")) for x in (tmp_path / "whole", folder)
    )
    for key, value in whole["model"].items():
        assert torch.equal(stopped["model"][key], value), key
    # The average is not the weights, and both are there.
    weights = whole["trainer"]["hooks"]["WeightAverage"]["weights"]
    differ = [k for k, v in weights.items() if not torch.equal(v, whole["model"][k])]
    assert differ
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(weights[key], value), key


def test_training_is_not_changed_by_the_average(toy_datasets, tmp_path):
    _, plain = run(tiny_config(toy_datasets, tmp_path / "plain", max_iter=2))
    _, averaged = run(tiny_config(toy_datasets, tmp_path / "averaged", max_iter=2, overrides=ON))
    assert averaged == plain


def test_evaluation_takes_the_average(toy_datasets, tmp_path, monkeypatch):
    evaluated = []
    monkeypatch.setattr(
        "spatialflow.engine.Trainer.test",
        staticmethod(lambda _, model: evaluated.append(model) or {}),
    )
    trainer, _ = run(tiny_config(toy_datasets, tmp_path, max_iter=2, overrides=ON))
    assert evaluated and all(model is not trainer.model for model in evaluated)
    saved = load_tensors(str(tmp_path / "model_final.pth"))["model"]
    for key, value in evaluated[-1].state_dict().items():
        assert torch.equal(saved[key], value), key


def test_a_run_without_an_average_can_go_on_with_one(toy_datasets, tmp_path):
    run(tiny_config(toy_datasets, tmp_path, max_iter=2))
    weights = load_tensors(str(tmp_path / "model_final.pth"))["model"]
    trainer, _ = run(tiny_config(toy_datasets, tmp_path, max_iter=2, overrides=ON), resume=True)
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(weights[key], value), key
