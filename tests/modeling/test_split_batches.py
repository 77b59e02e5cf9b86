"""The losses of a batch do not depend on how it is split over processes.

What Panoptic FPN has is Detectron2's: its semantic loss is a mean over the pixels of one process.
"""

from __future__ import annotations

import pytest
import split_batches
import torch

from spatialflow.engine import launch

SYSTEMS = ["spatialflow_toy", "jsis_net_toy", "spinet_toy", "htc_toy"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_two_processes_have_the_losses_of_one(name, toy_datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "randperm", torch.randperm)  # restored behind the test
    monkeypatch.setattr(torch, "rand", torch.rand)
    whole = split_batches.losses_of(name, str(toy_datasets), str(tmp_path), slice(0, 2))
    arguments = (name, str(toy_datasets), str(tmp_path))
    launch(split_batches.in_processes, 2, args=arguments, device="cpu")
    parts = [torch.load(tmp_path / f"losses_{rank}.pt") for rank in (0, 1)]
    assert {key: (parts[0][key] + parts[1][key]) / 2 for key in whole} == pytest.approx(
        whole, rel=1e-4
    )
