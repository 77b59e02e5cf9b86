"""Models that compute nothing."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, ImageList, Instances

from spatialflow.modeling.panoptic import HeuristicMerge
from spatialflow.modeling.panoptic_model import PanopticModel


class Branches(PanopticModel):
    """A model of which no more is known than its branches and its merge."""

    def __init__(self, masks=True, stuff=True, merge=HeuristicMerge(), boxes=True):  # noqa: B008
        super().__init__()
        self.predicts_boxes, self.predicts_masks, self.predicts_stuff = boxes, masks, stuff
        self.merge = merge if masks and stuff else None


class Recorded(PanopticModel):
    """A model that gives what it is told to.

    Args:
        candidates: boxes (n, 4) at the output size, scores and classes, of every image; None: the
            model predicts none.
        masks: (1, M, M); the mask of a box is a function of where it is; None: no masks.
        stuff: scores (S, H, W) at the output size; None: no stuff.

    Attributes:
        asked: the classes of each image that masks were asked for.
        batches: how many images ran together.
    """

    def __init__(self, candidates=None, masks=None, stuff=None, merge=None):
        super().__init__()
        self.candidates, self.masks, self.stuff = candidates, masks, stuff
        self.predicts_boxes, self.predicts_masks, self.predicts_stuff = (
            x is not None for x in (candidates, masks, stuff)
        )
        self.merge = merge
        self.asked, self.batches = [], []

    @property
    def device(self):
        return torch.device("cpu")

    def preprocess_image(self, batched_inputs):
        self.batches.append(len(batched_inputs))
        images = [x["image"].float() for x in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def dense(self, images):
        return images

    def find_candidates(self, dense, image_sizes, output_sizes):
        boxes, scores, classes = self.candidates
        return [
            Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
            for size in output_sizes
        ]

    def stuff_scores(self, dense, image_sizes, output_sizes):
        return [self.stuff] * len(image_sizes)

    def predict_masks(self, features, instances, image_sizes):
        self.asked.append(instances[0].pred_classes)
        return [self.masks_of(x.pred_boxes.tensor, x.image_size[1]) for x in instances]

    def masks_of(self, boxes, width) -> torch.Tensor:
        """(n, M, M) for boxes in an image of a width."""
        return (self.masks * boxes[:, :1, None] / width).clamp(0, 1)
