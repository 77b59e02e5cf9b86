"""Functions of boxes alone: NMS, other image sizes, the share of a box that a mask covers.

Boxes are x1 y1 x2 y2 in pixels.
"""

from __future__ import annotations

from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn


def select_detections(candidates: Instances, nms_thresh: float, max_detections: int) -> Instances:
    """NMS class by class, then the best over all classes.

    As in Detectron2, boxes that clipping left empty are dropped at the end.

    Args:
        candidates: scored boxes of one image, with ``pred_boxes``, ``scores`` and ``pred_classes``.
        nms_thresh: IoU above which NMS drops a box.
        max_detections: how many are kept.

    Returns:
        Those that are kept, best first.
    """
    boxes, scores, classes = (candidates.get(k) for k in ("pred_boxes", "scores", "pred_classes"))
    best = batched_nms(boxes.tensor, scores, classes, nms_thresh)[:max_detections]
    return candidates[best[boxes[best].nonempty()]]


def boxes_at(instances: Instances, size: tuple[int, int]) -> Boxes:
    """The ``pred_boxes`` of an image, copied and scaled to another height and width of it."""
    height, width = instances.image_size
    boxes = instances.pred_boxes.clone()
    boxes.scale(size[1] / width, size[0] / height)
    return boxes


def covered_share(mask: Tensor, boxes: Tensor) -> Tensor:
    """The share of each box, clipped to the image, that a mask covers.

    Args:
        mask: (H, W) bool.
        boxes: (R, 4), taken at whole pixels.

    Returns:
        (R,) float, 0 for a box without a pixel in the image.
    """
    integral = nn.functional.pad(mask.int().cumsum(0).cumsum(1), (1, 0, 1, 0))
    boxes = boxes.round().long()
    x1, x2 = boxes[:, 0::2].clamp(0, mask.shape[1]).unbind(1)
    y1, y2 = boxes[:, 1::2].clamp(0, mask.shape[0]).unbind(1)
    covered = integral[y2, x2] - integral[y1, x2] - integral[y2, x1] + integral[y1, x1]
    return covered / ((x2 - x1) * (y2 - y1)).clamp(min=1)
