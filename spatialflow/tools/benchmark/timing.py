"""Times of things that are called in turn, so that a busy machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Key = TypeVar("Key", bound=Hashable)


def seconds(function: Callable[[], Any], device: str) -> float:
    """How long a call takes, the work that it leaves to the device included."""
    _synchronize(device)
    start = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of times in seconds."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, times: list[float]) -> Summary:
        """Median and quartiles of at least two times, in seconds."""
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, low, high, len(times))


def alternate(
    functions: Mapping[Key, Callable[[], Any]], device: str, runs: int, warm_up: int
) -> dict[Key, list[float]]:
    """Times of each function, called one after the other ``warm_up`` + ``runs`` times."""
    times: dict[Key, list[float]] = {name: [] for name in functions}
    for _ in range(warm_up + runs):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return {name: x[warm_up:] for name, x in times.items()}


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the ratios of times that were taken side by side."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def peak_memory(function: Callable[[], Any], device: str) -> int:
    """Bytes of tensors that a call has at most, beyond what there was before it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    # Each allocation has its bytes, each release the same, negative.
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(accumulate((e.nbytes() for e in events), initial=0))


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
