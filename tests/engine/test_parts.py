"""Batches in parts: the gradients of the whole, from the memory of a part."""

import pytest
import torch
from recorded_run import run
from tiny_runs import tiny_config
from torch import nn

from spatialflow.engine.parts import InParts


class Squares(nn.Module):
    """Two losses, means over the images of a batch; remembers how many it was given at a time."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.sizes = []

    def forward(self, batch):
        self.sizes.append(len(batch))
        x = torch.stack([image["x"] for image in batch])
        return {"loss_a": ((self.weight * x) ** 2).mean(), "loss_b": (self.weight * x).mean()}


def batch_of(n):
    return [{"x": torch.tensor(float(i + 1))} for i in range(n)]


@pytest.mark.parametrize(
    ("num_images", "num_parts", "sizes"),
    [(6, 3, [2, 2, 2]), (5, 2, [2, 3]), (3, 8, [1, 1, 1]), (4, 1, [4])],
)
def test_losses_and_gradients_are_those_of_the_whole_batch(num_images, num_parts, sizes):
    batch, whole, model = batch_of(num_images), Squares(), Squares()
    expected = whole(batch)
    sum(expected.values()).backward()
    found = InParts(model, num_parts)(batch)
    sum(found.values()).backward()
    assert model.sizes == sizes
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss)
    torch.testing.assert_close(model.weight.grad, whole.weight.grad)


def test_the_scale_of_mixed_precision_reaches_every_part():
    model = Squares()
    losses = InParts(model, 3, scale=lambda loss: loss * 64)(batch_of(3))
    (sum(losses.values()) * 64).backward()
    whole = Squares()
    sum(whole(batch_of(3)).values()).backward()
    torch.testing.assert_close(model.weight.grad, whole.weight.grad * 64)


def test_no_parts_are_refused():
    with pytest.raises(ValueError, match="SOLVER.BATCH_PARTS is 0"):
        InParts(Squares(), 0)


def test_training_in_parts_can_be_stopped_and_resumed(toy_datasets, tmp_path):
    overrides = ["SOLVER.BATCH_PARTS", 2, "SOLVER.IMS_PER_BATCH", 4]
    overrides += ["SOLVER.REFERENCE_IMS_PER_BATCH", 4]
    _, rows = run(tiny_config(toy_datasets, tmp_path / "whole", 4, overrides))
    _, first = run(tiny_config(toy_datasets, tmp_path / "stopped", 2, overrides))
    _, last = run(tiny_config(toy_datasets, tmp_path / "stopped", 4, overrides), resume=True)
    assert first + last == rows
