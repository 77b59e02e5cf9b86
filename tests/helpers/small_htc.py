"""HTC with few channels and random weights that find something, and batches to train it on."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from small_rcnn import STUFF, THINGS, small_rcnn

from spatialflow.config import load_config
from spatialflow.model_zoo import get_config_file
from spatialflow.modeling import HybridTaskCascade

SIZE = (64, 96)


def htc_config(*overrides: object) -> CfgNode:
    """The toy config with fewer channels, for images of about 100 pixels."""
    values = {
        "MODEL.DEVICE": "cpu",
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.ROI_HEADS.NUM_CLASSES": THINGS,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": STUFF,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    }
    opts = [text for key, value in values.items() for text in (key, str(value))]
    return load_config(get_config_file("toy/htc_toy.yaml"), [*opts, *map(str, overrides)])


def small_htc(*overrides: object) -> HybridTaskCascade:
    """The model in evaluation mode; its classes have scores and its masks are not all one half."""
    model = small_rcnn(htc_config(*overrides))
    assert isinstance(model, HybridTaskCascade)
    return model


def training_image(boxes=(), size=SIZE, labels=None, crowd=None) -> dict:
    """An image with filled boxes (x1, y1, x2, y2) as things of class 1, and stuff."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    instances = Instances(size, gt_masks=BitMasks(masks))
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.ones(len(boxes), dtype=torch.int64)
    generator = torch.Generator().manual_seed(len(boxes))
    image = torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator)
    example = {"image": image, "instances": instances}
    example["sem_seg"] = torch.full(size, 2) if labels is None else labels
    return example if crowd is None else {**example, "crowd_mask": crowd}


def losses_of(model: HybridTaskCascade, batch: list[dict], seed: int = 0) -> dict:
    """Losses in training mode; sampling follows the seed."""
    torch.manual_seed(seed)
    with EventStorage():  # Detectron2's parts log to it
        return model.train()(batch)
