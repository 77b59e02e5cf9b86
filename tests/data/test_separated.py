"""Detectron2's ``*_panoptic_separated`` kind: polygons, run-length codes and stuff PNGs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic_separated
from detectron2.structures import BitMasks, BoxMode
from panoptic_folder import scene
from PIL import Image

from spatialflow.data import (
    PanopticMapper,
    build_train_loader,
    load_coco_panoptic,
    load_dataset_dicts,
    prepare_datasets,
)
from spatialflow.data.categories import Categories

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def one(tmp_path):
    """A separated dict of the common scene: a polygon of a car, a crowd as run-length code."""
    ids, _ = scene()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    labels = np.select([ids == 1, ids == 256, ids == 0], [2, 1, 255], 0).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "stuff.png")
    crowd = mask_util.encode(np.asfortranarray((ids == 513).astype(np.uint8)))
    mode = {"bbox_mode": BoxMode.XYWH_ABS}
    return {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "stuff.png"),
        "image_id": 1,
        "height": 20,
        "width": 30,
        "annotations": [
            {
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [3, 5, 10, 10],  # not tight
                "segmentation": [[4, 6, 12, 6, 12, 14, 4, 14]],
                **mode,
            },
            {
                "category_id": 0,
                "iscrowd": 1,
                "bbox": [20, 2, 6, 3],
                "segmentation": crowd,
                **mode,
            },
        ],
    }


def test_targets_are_those_of_the_panoptic_kind(cfg, one):
    cfg.INPUT.RANDOM_FLIP = "none"
    sample = PanopticMapper(cfg, True)(one)
    ids, _ = scene()
    np.testing.assert_array_equal(sample["instances"].gt_masks.tensor, [ids == 70000])
    assert sample["instances"].gt_boxes.tensor.tolist() == [[4, 6, 12, 14]]
    assert sample["instances"].gt_classes.tolist() == [1]
    np.testing.assert_array_equal(sample["crowd_mask"], ids == 513)
    labels = np.select([ids == 1, ids == 256, ids == 0], [2, 1, 255], 0)
    np.testing.assert_array_equal(sample["sem_seg"], labels)
    assert sample["sem_seg"].dtype == torch.int64


def test_targets_follow_the_augmentation(cfg, one):
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    mapper = PanopticMapper(cfg, True)
    mapper.augmentations.augs[-1].prob = 1.0
    sample = mapper(one)
    assert sample["instances"].gt_boxes.tensor.tolist() == [[36, 12, 52, 28]]
    box = BitMasks(sample["crowd_mask"][None]).get_bounding_boxes()
    assert box.tensor.tolist() == [[8, 4, 20, 10]]
    assert (sample["sem_seg"][:, :2] == 255).all() and sample["sem_seg"].shape == (40, 60)


@pytest.mark.parametrize("kept, things, crowds", [([], 0, 0), ([1], 0, 1)])
def test_images_without_things_have_empty_targets(cfg, one, kept, things, crowds):
    one["annotations"] = [one["annotations"][i] for i in kept]
    sample = PanopticMapper(cfg, True)(one)
    assert len(sample["instances"]) == things and sample["crowd_mask"].any() == bool(crowds)
    assert sample["instances"].gt_masks.tensor.shape == (0, 20, 30)
    assert sample["instances"].gt_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("kind", ["gone", "other size"])
def test_unusable_stuff_pngs_are_named(cfg, one, kind):
    path = Path(one["sem_seg_file_name"])
    path.unlink()
    if kind == "other size":
        Image.fromarray(np.zeros((20, 31), np.uint8)).save(path)
    with pytest.raises((FileNotFoundError, ValueError), match=str(path)):
        PanopticMapper(cfg, True)(one)


def test_inference_needs_no_annotation(cfg, one):
    Path(one["sem_seg_file_name"]).unlink()
    sample = PanopticMapper(cfg, False)(one)
    assert set(sample) == {"image", "height", "width", "file_name", "image_id"}


@pytest.fixture
def coco_copy(coco_sample, tmp_path):
    """A writable copy of the COCO sample, registered anew under ``copy_panoptic_separated``."""
    shutil.copytree(coco_sample / "coco", tmp_path / "coco", copy_function=shutil.copyfile)
    builtin = MetadataCatalog.get("coco_2017_val_panoptic_separated")
    keys = ("thing_classes", "thing_colors", "stuff_classes", "stuff_colors")
    ids = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
    coco = tmp_path / "coco"
    register_coco_panoptic_separated(
        "copy_panoptic",
        {k: builtin.get(k) for k in keys + ids},
        str(coco / "val2017"),
        str(coco / "panoptic_val2017"),
        str(coco / "annotations/panoptic_val2017.json"),
        str(coco / "panoptic_stuff_val2017"),
        str(coco / "annotations/instances_val2017.json"),
    )
    yield tmp_path


def _prepare(root, *args):
    return subprocess.run(
        [sys.executable, "datasets/prepare_panoptic_stuff.py", *args],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "DETECTRON2_DATASETS": str(root)},
        capture_output=True,
        text=True,
    )


def test_the_builtin_name_trains_after_the_script_made_its_pngs(cfg, coco_copy):
    name = "copy_panoptic_separated"
    cfg.DATASETS.TRAIN = (name,)
    with pytest.raises(FileNotFoundError, match="sem_seg_root .*prepare_panoptic_stuff.py"):
        prepare_datasets(cfg)
    done = _prepare(coco_copy, "coco_2017_val_panoptic_separated", "--workers", "1")
    assert done.returncode == 0, done.stderr
    prepare_datasets(cfg)
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (80, 54)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)  # no resize
    batch = next(iter(build_train_loader(cfg)))
    assert {len(s["instances"]) for s in batch} == {14, 26}
    assert all(s["crowd_mask"].any() for s in batch)


def test_a_missing_stuff_png_is_named(coco_copy):
    assert _prepare(coco_copy, "coco_2017_val_panoptic_separated").returncode == 0
    (coco_copy / "coco/panoptic_stuff_val2017/000000439180.png").unlink()
    with pytest.raises(ValueError, match="000000439180.jpg.*prepare_panoptic_stuff.py"):
        load_dataset_dicts("copy_panoptic_separated")


def test_both_kinds_of_coco_have_the_same_targets(cfg, coco_copy):
    assert _prepare(coco_copy, "coco_2017_val_panoptic_separated").returncode == 0
    separated = {d["image_id"]: d for d in load_dataset_dicts("copy_panoptic_separated")}
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    coco = coco_copy / "coco"
    standard = load_coco_panoptic(
        str(coco / "val2017"),
        str(coco / "panoptic_val2017"),
        str(coco / "annotations/panoptic_val2017.json"),
        Categories.from_metadata(metadata),
    )
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)  # no resize
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = PanopticMapper(cfg, True)
    for one in standard:
        a, b = mapper(one), mapper(separated[one["image_id"]])
        assert torch.equal(a["sem_seg"], b["sem_seg"])
        assert len(a["instances"]) == len(b["instances"])
        order_a, order_b = (
            sorted(
                range(len(s["instances"])), key=s["instances"].gt_boxes.tensor.tolist().__getitem__
            )
            for s in (a, b)
        )
        things_a, things_b = a["instances"][order_a], b["instances"][order_b]
        assert torch.equal(things_a.gt_classes, things_b.gt_classes)
        both = (things_a.gt_masks.tensor & things_b.gt_masks.tensor).sum((1, 2))
        either = (things_a.gt_masks.tensor | things_b.gt_masks.tensor).sum((1, 2))
        assert (both / either > 0.9).all()


def test_the_script_names_what_is_missing(tmp_path):
    done = _prepare(tmp_path, "coco_2017_val_panoptic_separated")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert str(tmp_path / "coco/annotations/panoptic_val2017.json") in done.stderr
