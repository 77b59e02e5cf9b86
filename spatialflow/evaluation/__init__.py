"""Evaluation: the evaluators that a dataset gets, and the measures behind them.

What stands in ``__all__`` is imported when it is first used: scoring files needs no torch.
"""

from __future__ import annotations

from spatialflow.utils.lazy import lazy_names

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
    "write_csv": "tables",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
