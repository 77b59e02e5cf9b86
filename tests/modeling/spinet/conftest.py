"""A SPINet small enough for tests, and its inputs."""

import pytest
import torch
from detectron2.structures import BitMasks, Instances

from spatialflow.engine import Trainer
from spatialflow.model_zoo import get_config

THINGS, STUFF_LABELS = 3, 4
VOID = 255


@pytest.fixture
def cfg():
    """All terms of the loss, of a small SPINet that finds things from the start."""
    cfg = get_config("toy/spinet_toy.yaml")
    model = cfg.MODEL
    model.RETINANET.NUM_CLASSES, model.SEM_SEG_HEAD.NUM_CLASSES = THINGS, STUFF_LABELS
    model.RETINANET.PRIOR_PROB, model.RETINANET.NUM_CONVS = 0.6, 1
    model.FPN.OUT_CHANNELS = model.SEM_SEG_HEAD.CONVS_DIM = model.SPINET.FILTER_CHANNELS = 32
    for term in model.SPINET.LOSS_WEIGHTS:
        model.SPINET.LOSS_WEIGHTS[term] = 1.0
    model.RETINANET.TOPK_CANDIDATES_TEST = 20
    return cfg


@pytest.fixture
def build(cfg):
    """Function from overrides below MODEL to a SPINet in evaluation mode."""

    def make(**overrides):
        for key, value in overrides.items():
            cfg.merge_from_list([f"MODEL.{key.replace('__', '.')}", value])
        torch.manual_seed(0)
        return Trainer.build_model(cfg).eval()

    return make


@pytest.fixture
def scene():
    """Function from boxes of things to a training input; thing i has class i modulo 3."""

    def make(*boxes, size=(64, 96), crowd=None, seed=0):
        height, width = size
        masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[y1:y2, x1:x2] = True
        instances = Instances(size, gt_masks=BitMasks(masks))
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        instances.gt_classes = torch.arange(len(boxes)) % THINGS
        stuff = torch.ones(size, dtype=torch.int64)
        stuff[height // 2 :] = 2
        stuff[:, -4:] = VOID
        crowds = torch.zeros(size, dtype=torch.bool)
        if crowd is not None:
            x1, y1, x2, y2 = crowd
            crowds[y1:y2, x1:x2] = True
        stuff[masks.any(0) | crowds] = 0
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(256, (3, height, width), generator=generator).to(torch.uint8)
        return {"image": image, "instances": instances, "sem_seg": stuff, "crowd_mask": crowds}

    return make
