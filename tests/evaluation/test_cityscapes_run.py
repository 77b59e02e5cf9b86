"""From a Cityscapes tree to the numbers of its own scripts, by way of a short training."""

import json
from pathlib import Path

import pytest
from cityscapes_tree import write_tree
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes_panoptic import register_all_cityscapes_panoptic
from tiny_runs import tiny_overrides

from spatialflow.cli import run_command
from spatialflow.config import config_dir, load_config
from spatialflow.data import datasets_root, prepare_datasets
from spatialflow.engine import Trainer

NAMES = [f"cityscapes_fine_panoptic_{split}" for split in ("train", "val")]


def _forget():
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def root(tmp_path):
    """Detectron2's names, for a tree in a folder of the test's own."""
    write_tree(tmp_path / "cityscapes", ("train", "val"))
    _forget()
    register_all_cityscapes_panoptic(str(tmp_path))
    yield tmp_path
    _forget()
    register_all_cityscapes_panoptic(datasets_root())


def test_preparation_training_and_evaluation(root):
    run_command("convert", ["cityscapes", "--root", str(root / "cityscapes"), "--workers", "1"])
    options = {
        "DATASETS.REGISTER": "[]",
        "DATASETS.TRAIN": str((NAMES[0],)),
        "DATASETS.TEST": str((NAMES[1],)),
        "MODEL.SEM_SEG_HEAD.THING_LABELS": str(list(range(11, 19))),
    }
    overrides = tiny_overrides(Path(), root / "out", max_iter=2)
    overrides += [text for option in options.items() for text in option]
    cfg = load_config(str(config_dir() / "toy" / "spatialflow_toy.yaml"), overrides)
    prepare_datasets(cfg)
    cfg.freeze()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = json.loads((root / "out" / "results.json").read_text())[NAMES[1]]
    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg"]
    assert 0 <= results["segm"]["AP"] <= results["segm"]["AP50"] <= 100
    assert 0 < results["sem_seg"]["IoU"] < 100
