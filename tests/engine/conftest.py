"""Fixtures of the engine tests."""

import logging

import pytest

LOGGERS = ("detectron2", "fvcore", "spatialflow")


@pytest.fixture(autouse=True)
def _loggers_as_before():
    """Undo what Detectron2's setup_logger does to loggers, whose streams end with the test."""
    before = [(logging.getLogger(n), logging.getLogger(n).propagate) for n in LOGGERS]
    handlers = [list(logger.handlers) for logger, _ in before]
    yield
    for (logger, propagate), kept in zip(before, handlers, strict=True):
        logger.handlers[:] = kept
        logger.propagate = propagate
