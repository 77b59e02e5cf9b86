"""An evaluation as --eval-only with TEST.SAVE_PREDICTIONS leaves it, small and full of mistakes."""

import json

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from panoptic_scenes import CATEGORIES, two_images, write_panoptic

from spatialflow.data import register_coco_panoptic
from spatialflow.evaluation import PanopticEvaluator, PanopticGroundTruth

EVIL = "</script><script>document.title = 'evil'</script><b onclick=alert(1)>&amp;"
"""The name of the class grass."""

NAME = "report_test"

GRASS, CAT, DOG, SKY = 0, 3, 4, 9
IDS = frozenset((GRASS, CAT, DOG, SKY))
"""Category ids of the dataset."""


def mistaken_outputs():
    """A cat is called dog, the dog is missed, another dog is false; one lies on the crowd."""
    first, second = (id_map.copy() for id_map, _ in two_images())
    first[first == 3] = 0
    first[20:23, 2:10] = 9
    second[:8], second[8:, 8:] = 5, 0
    segments = [(1000, 0, 1), (70000, 0, 2), (1, 1, 0, 0.9), (2, 1, 1, 0.8), (9, 1, 1, 0.6)]
    return [panoptic_seg(first, *segments), panoptic_seg(second, (5, 0, 1), (6, 1, 1, 0.7))]


def panoptic_seg(id_map, *segments):
    """Model output from an id map and (id, isthing, class[, score])."""
    keys = ("id", "isthing", "category_id", "score")
    segments = [dict(zip(keys, s, strict=False)) for s in segments]
    return {"panoptic_seg": (torch.from_numpy(id_map.astype(np.int32)), segments)}


def save_evaluation(folder, name=NAME):
    """Write a dataset and its evaluation; returns OUTPUT_DIR."""
    (folder / "data").mkdir(parents=True)
    categories = [{**c, "name": EVIL if c["name"] == "grass" else c["name"]} for c in CATEGORIES]
    register_coco_panoptic(name, *write_panoptic(folder / "data", two_images(), categories))
    output = folder / "output"
    evaluator = PanopticEvaluator(PanopticGroundTruth(name), str(output / "inference" / name))
    for image_id, prediction in enumerate(mistaken_outputs()):
        evaluator.process([{"image_id": image_id}], [prediction])
    metrics = evaluator.evaluate()["panoptic_seg"]
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    results = {"panoptic_seg": metrics, "bbox": {"AP": 12.5, "APs": None, "AP-cat": 1.0}}
    (output / "results.json").write_text(json.dumps({name: results}))
    (output / "config.yaml").write_text("MODEL:\n  WEIGHTS: output/<model>.pth\n")
    log = "[11/21 04:21:30] detectron2 INFO: Environment info:\n{}\n[11/21 04:21:31] d2 INFO: Go\n"
    (output / "log.txt").write_text(log.format("PyTorch old") + log.format("PyTorch 2.15.0"))
    return output
