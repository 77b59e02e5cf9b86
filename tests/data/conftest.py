"""The fixtures of tests on small datasets."""

from dataset_fixtures import *  # noqa: F403
from dataset_fixtures import _clean_catalog  # noqa: F401
