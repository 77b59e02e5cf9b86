"""What the guard against losses and gradients that are not finite looks at, and what it costs."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spatialflow.engine.hooks import MAX_SKIPPED_STEPS, FiniteGuard

FINITE, INFINITE, NAN = 1.0, float("inf"), float("nan")


class Scaled(torch.autograd.Function):
    """x + 0, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


class Model(torch.nn.Module):
    """Two losses; the gradient of the second one is multiplied by ``factor``."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 2)
        self.second = torch.nn.Linear(3, 2)
        self.unused = torch.nn.Linear(3, 2)
        self.factor, self.loss_factor = FINITE, FINITE

    def forward(self, batch):
        x = torch.ones(1, 3)
        second = Scaled.apply(self.second(x), self.factor).sum()
        return {"loss_a": self.first(x).sum(), "loss_b": second * self.loss_factor}


class Run:
    """Steps of SGD as Detectron2's SimpleTrainer and AMPTrainer make them."""

    def __init__(self, amp=False):
        self.model = Model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.guard = FiniteGuard(self.model, self.optimizer, amp)
        self.scaler = torch.amp.GradScaler("cpu", enabled=amp)
        self.iteration = 0

    def step(self, factor=FINITE, loss_factor=FINITE):
        self.model.factor, self.model.loss_factor = factor, loss_factor
        losses = self.model([{"file_name": "street.jpg"}])
        self.optimizer.zero_grad()
        self.scaler.scale(sum(losses.values())).backward()
        self.guard.trainer = SimpleNamespace(iter=self.iteration)
        self.guard.after_backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.iteration += 1

    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]


class HostReads(TorchDispatchMode):
    """Counts ``item()``, which waits for the device."""

    def __init__(self):
        super().__init__()
        self.items = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.items += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("factor", [INFINITE, -INFINITE, NAN])
def test_gradient_that_is_not_finite_is_named_and_changes_nothing(factor):
    run = Run()
    run.step()
    before = run.weights()
    with pytest.raises(FloatingPointError) as error:
        run.step(factor)
    message = str(error.value)
    assert "gradient (of finite losses) is not finite at iteration 1; the weights were" in message
    assert "gradient of second.weight, second.bias" in message and "first" not in message
    assert "image street.jpg" in message
    assert all(torch.equal(a, b) for a, b in zip(before, run.weights(), strict=True))


def test_a_loss_that_is_not_finite_is_told_from_a_gradient():
    with pytest.raises(FloatingPointError, match="The loss is not finite at iteration 0;.*") as e:
        Run().step(loss_factor=NAN)
    assert "loss_b nan" in str(e.value) and "gradient" not in str(e.value).split("Look")[0]


def test_large_finite_gradients_are_no_error():
    Run().step(factor=3e38)  # their sum of squares would overflow


def test_at_most_one_transfer_to_the_host_a_step():
    run = Run()
    run.model.factor = FINITE
    sum(run.model([{"file_name": "street.jpg"}]).values()).backward()
    with HostReads() as reads:
        run.guard.after_backward()
    assert reads.items == 0  # beside the one tolist()


def test_with_amp_a_few_overflows_are_the_scalers():
    run = Run(amp=True)
    scale = run.scaler.get_scale()
    before = run.weights()
    for _ in range(5):
        run.step(INFINITE)
    assert all(torch.equal(a, b) for a, b in zip(before, run.weights(), strict=True))
    assert run.scaler.get_scale() == scale / 2**5
    run.step()
    assert not torch.equal(before[0], run.weights()[0])


def test_with_amp_overflows_that_do_not_end_stop_training():
    run = Run(amp=True)
    before = run.weights()
    for _ in range(MAX_SKIPPED_STEPS - 1):
        run.step(INFINITE)
    run.step()  # one that is fine starts the count again
    before = run.weights()
    for _ in range(MAX_SKIPPED_STEPS):
        run.step(NAN)
    with pytest.raises(FloatingPointError, match=rf"in the {MAX_SKIPPED_STEPS} iterations before"):
        run.step(NAN)
    assert all(torch.equal(a, b) for a, b in zip(before, run.weights(), strict=True))


def test_with_amp_losses_are_still_looked_at():
    with pytest.raises(FloatingPointError, match="The loss is not finite"):
        Run(amp=True).step(loss_factor=INFINITE)
