"""CamVid and two COCO images, or stand-ins, through registration, mapper and loader."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from spatialflow.data import (
    PanopticMapper,
    build_train_loader,
    load_coco_panoptic,
    load_dataset_dicts,
    prepare_datasets,
    read_panoptic_json,
    register_coco_panoptic,
)
from spatialflow.data.categories import Categories


@pytest.fixture
def camvid_cfg(cfg, camvid):
    cfg.DATASETS.REGISTER = [
        [f"camvid_{s}", *(str(camvid / p) for p in (s, f"panoptic_{s}", f"panoptic_{s}.json"))]
        for s in ("train", "val")
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("camvid_train",), ("camvid_val",)
    cfg.INPUT.MIN_SIZE_TRAIN = (360,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.SEED = 0
    prepare_datasets(cfg)
    return cfg


def assert_targets_are_the_annotation(sample, segments):
    """Areas and boxes as the JSON has them."""
    instances = sample["instances"]
    things = [s for s in segments if s["isthing"] and not s["iscrowd"]]
    areas = instances.gt_masks.tensor.sum((1, 2)).tolist()
    assert areas == [s["area"] for s in things]
    boxes = instances.gt_boxes.tensor.numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    np.testing.assert_array_equal(boxes, np.array([s["bbox"] for s in things]).reshape(-1, 4))
    assert instances.gt_classes.tolist() == [s["category_id"] for s in things]
    crowds = sum(s["area"] for s in segments if s["isthing"] and s["iscrowd"])
    assert sample["crowd_mask"].sum() == crowds
    stuff = {}
    for s in segments:
        stuff[s["stuff_label"]] = stuff.get(s["stuff_label"], 0) + s["area"]
    labels, counts = np.unique(sample["sem_seg"], return_counts=True)
    assert {
        k: v for k, v in zip(labels.tolist(), counts.tolist(), strict=True) if k != 255
    } == stuff


def test_camvid_has_its_images_and_classes(camvid, camvid_cfg):
    assert camvid_cfg.MODEL.RETINANET.NUM_CLASSES == 3
    assert camvid_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 9
    train, val = load_dataset_dicts("camvid_train"), load_dataset_dicts("camvid_val")
    assert train and val
    for split, dicts in (("train", train), ("val", val)):
        content = json.loads((camvid / f"panoptic_{split}.json").read_text())
        given = [s["category_id"] for a in content["annotations"] for s in a["segments_info"]]
        loaded = [s for d in dicts for s in d["segments_info"] if s["isthing"]]
        cars = sum(s["category_id"] == 0 for s in loaded)
        assert len(dicts) == len(content["images"]) and cars == given.count(9) > 0


def test_all_of_camvid_is_there(real_camvid, camvid_cfg):
    train, val = load_dataset_dicts("camvid_train"), load_dataset_dicts("camvid_val")
    assert (len(train), len(val)) == (367, 101)


def test_camvid_targets_are_the_annotation(camvid_cfg):
    mapper = PanopticMapper(camvid_cfg, True)
    for one in load_dataset_dicts("camvid_train")[::40] + load_dataset_dicts("camvid_val")[::40]:
        assert_targets_are_the_annotation(mapper(one), one["segments_info"])


def test_camvid_batches_load(camvid_cfg):
    camvid_cfg.SOLVER.IMS_PER_BATCH = 4
    batch = next(iter(build_train_loader(camvid_cfg)))
    assert [tuple(s["image"].shape) for s in batch] == [(3, 360, 480)] * 4


@pytest.fixture
def coco(coco_sample):
    root = coco_sample / "coco"
    return [
        str(root / p) for p in ("val2017", "panoptic_val2017", "annotations/panoptic_val2017.json")
    ]


@pytest.mark.parametrize("kind", ["coco_2017_val_panoptic", "own"])
def test_coco_targets_are_the_annotation(cfg, coco, kind):
    if kind == "own":
        categories = Categories.from_json(read_panoptic_json(coco[2])["categories"])
    else:
        categories = Categories.from_metadata(MetadataCatalog.get(kind))
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)  # no resize
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = PanopticMapper(cfg, True)
    dicts = load_coco_panoptic(*coco, categories)
    assert [d["image_id"] for d in dicts] == [142238, 439180]
    for one in dicts:
        assert_targets_are_the_annotation(mapper(one), one["segments_info"])


def test_an_instances_json_is_no_panoptic_json(coco):
    images, pngs, panoptic_json = coco
    instances_json = os.path.join(Path(panoptic_json).parent, "instances_val2017.json")
    with pytest.raises(ValueError, match="is an instances JSON"):
        register_coco_panoptic("own_val", images, pngs, instances_json)
