"""Fixtures of the data tests: a small dataset, a config for it, a clean catalog."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from panoptic_folder import CATEGORIES, PanopticFolder, scene

from spatialflow.config import config_dir, load_config


@pytest.fixture
def empty_folder(tmp_path: Path) -> PanopticFolder:
    for name in ("images", "panoptic"):
        (tmp_path / name).mkdir()
    return PanopticFolder(
        tmp_path, {"images": [], "annotations": [], "categories": list(CATEGORIES)}
    )


@pytest.fixture
def folder(empty_folder: PanopticFolder) -> PanopticFolder:
    """A saved dataset of two images, both with the segments of :func:`scene`."""
    for _ in range(2):
        empty_folder.add(*scene())
    return empty_folder.save()


@pytest.fixture
def cfg() -> CfgNode:
    """A config whose images keep the size of :func:`scene`."""
    cfg = load_config(str(config_dir() / "Base-SpatialFlow.yaml"))
    cfg.INPUT.MIN_SIZE_TRAIN = (20,)
    cfg.INPUT.MIN_SIZE_TEST = 20
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    return cfg


@pytest.fixture(autouse=True)
def _clean_catalog():
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
