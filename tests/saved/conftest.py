"""The fixtures of tests on evaluated datasets."""

from evaluation_fixtures import *  # noqa: F403
