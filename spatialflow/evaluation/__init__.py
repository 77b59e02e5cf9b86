"""Evaluation: the evaluators that a dataset gets, and the measures behind them."""

from .build import build_evaluator, format_results
from .ground_truth import PanopticGroundTruth
from .instances import PanopticInstanceEvaluator
from .panoptic import PanopticEvaluator
from .panoptic_quality import PanopticCounts, match_segments
from .semantic import PanopticSemSegEvaluator

__all__ = [
    "PanopticCounts",
    "PanopticEvaluator",
    "PanopticGroundTruth",
    "PanopticInstanceEvaluator",
    "PanopticSemSegEvaluator",
    "build_evaluator",
    "format_results",
    "match_segments",
]
