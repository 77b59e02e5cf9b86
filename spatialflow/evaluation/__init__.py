"""Evaluation: the evaluators that a dataset gets, and the measures behind them.

What stands in ``__all__`` is imported when it is first used: scoring files needs no torch.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "PanopticCounts": "panoptic_quality",
    "PanopticEvaluator": "panoptic",
    "PanopticGroundTruth": "ground_truth",
    "PanopticInstanceEvaluator": "instances",
    "PanopticSemSegEvaluator": "semantic",
    "bootstrap_intervals": "bootstrap",
    "build_evaluator": "build",
    "format_comparison": "tables",
    "format_results": "tables",
    "match_segments": "panoptic_quality",
    "score_folder": "folders",
    "write_csv": "tables",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
