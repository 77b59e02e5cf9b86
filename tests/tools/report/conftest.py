"""Fixtures of the report's tests."""

import pytest
from saved_run import save_evaluation


@pytest.fixture(scope="session")
def _evaluation(tmp_path_factory):
    return save_evaluation(tmp_path_factory.mktemp("report"))


@pytest.fixture
def results(_evaluation):
    """OUTPUT_DIR of an evaluation that is not to be changed."""
    return _evaluation


@pytest.fixture
def own_results(tmp_path):
    """OUTPUT_DIR of an evaluation that may be changed."""
    return save_evaluation(tmp_path, "report_test_own")
