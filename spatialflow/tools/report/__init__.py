"""A page to look at an evaluation: ``spatialflow report RESULTS`` writes it."""

from .content import build_content
from .page import write_page
from .saved import SavedEvaluation, read_saved

__all__ = ["SavedEvaluation", "build_content", "read_saved", "write_page"]
