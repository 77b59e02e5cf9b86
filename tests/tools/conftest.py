"""The fixtures of tests on small datasets, annotated and evaluated, and of pages."""

from chromium import browser  # noqa: F401
from dataset_fixtures import *  # noqa: F403
from dataset_fixtures import _clean_catalog  # noqa: F401
from evaluation_fixtures import cityscapes, register  # noqa: F401
