"""Roofline: the least time of a step, its multiply-adds and bytes over the device's rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .timing import seconds


@dataclass(frozen=True)
class Rates:
    """Rates of a device per second: multiply-adds of a matrix product, bytes of a copy."""

    multiply_adds: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """Multiply-adds of convolutions and matrix products, and bytes read and written."""

    multiply_adds: int
    bytes: int

    def roofline(self, rates: Rates) -> tuple[float, float]:
        """Lower bounds in seconds: compute bound and memory bound."""
        return self.multiply_adds / rates.multiply_adds, self.bytes / rates.bytes


class _Traffic(TorchDispatchMode):
    """Counts the bytes of the tensors that each operator takes and gives, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            # An operator that works in place gives a tensor that it takes.
            unique = {id(x): x.numel() * x.element_size() for x in tensors}
            self.bytes += sum(unique.values())
        return result


def count(function: Callable[[], Any]) -> Work:
    """The work of one call, operator by operator: fused operators can move fewer bytes."""
    traffic = _Traffic()
    with FlopCounterMode(display=False) as flops, traffic:
        function()
    return Work(flops.get_total_flops() // 2, traffic.bytes)


def measure_rates(device: str, quick: bool) -> Rates:
    """The rates in float32; on CUDA with TF32 where convolutions have it."""
    cuda = device.startswith("cuda")
    side = (8192 if cuda else 2048) // (2 if quick else 1)
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    source = torch.zeros(2**28 // (16 if quick else 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(
        "high" if cuda and torch.backends.cudnn.allow_tf32 else precision
    )
    try:
        product = _least_seconds(lambda: torch.mm(a, b), device)
    finally:
        torch.set_float32_matmul_precision(precision)
    copy = _least_seconds(lambda: target.copy_(source), device)
    return Rates(side**3 / product, 2 * source.numel() / copy)


def _least_seconds(function: Callable[[], Any], device: str) -> float:
    return min(seconds(function, device) for _ in range(12))
