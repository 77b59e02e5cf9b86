"""Weights in half precision."""

import pytest
import torch

from spatialflow.checkpoint.halve import halve


def test_float32_becomes_float16_and_integers_stay():
    state = {"w": torch.tensor([1.0, -2.5, 0.1]), "n": torch.tensor(7)}
    halved = halve(state)
    assert halved["w"].dtype == torch.float16 and halved["n"].dtype == torch.int64
    torch.testing.assert_close(halved["w"].float(), state["w"], rtol=1e-3, atol=0)
    assert state["w"].dtype == torch.float32


def test_values_that_half_precision_lacks_are_named():
    with pytest.raises(ValueError, match="cannot hold norm.running_var"):
        halve({"norm.running_var": torch.tensor([1e5]), "w": torch.zeros(1)})
