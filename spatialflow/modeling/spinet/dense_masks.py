"""Masks that the single-shot convolution gives for the whole image: their boxes, NMS and sizes.

Legend: n masks of one image, h x w the size of the panoptic feature, stride 4. Sizes are (height,
width).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, Boxes
from torch import Tensor

STRIDE = 4
"""Of the panoptic feature."""
PIXELS_AT_A_TIME = 2**24
"""Logits at the size of an image that are held at most, 64 MB, or those of one mask."""


class DenseMasks:
    """Mask logits of an image, a field of Detectron2's ``Instances``.

    Args:
        logits: (n, h, w); a pixel over 0 belongs to the mask.
        image_size: of the network input without padding.
    """

    def __init__(self, logits: Tensor, image_size: tuple[int, int]):
        self.logits = logits
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, item: Tensor | slice) -> DenseMasks:
        return DenseMasks(self.logits[item], self.image_size)

    def binary(self) -> Tensor:
        """(n, h', w') bool, without the cells that are padding alone."""
        height, width = (-(-side // STRIDE) for side in self.image_size)
        return self.logits[:, :height, :width] > 0

    def boxes(self) -> Boxes:
        """The boxes around the masks in pixels of the network input; empty masks have area 0."""
        boxes = BitMasks(self.binary()).get_bounding_boxes().to(self.logits.device)
        boxes.scale(STRIDE, STRIDE)
        boxes.clip(self.image_size)
        return boxes

    def at_size(self, output_size: tuple[int, int]) -> Tensor:
        """The masks at the size of the result, (n, *output_size) bool."""
        masks = torch.empty((len(self), *output_size), dtype=torch.bool, device=self.logits.device)
        step = max(1, PIXELS_AT_A_TIME // (output_size[0] * output_size[1]))
        for first in range(0, len(self), step):
            part = upsample(self.logits[first : first + step], self.image_size, output_size)
            torch.gt(part, 0, out=masks[first : first + step])
        return masks

    def in_boxes(self, boxes: Boxes, side: int) -> Tensor:
        """The probabilities (n, side, side) of each mask in a box, in pixels of the input."""
        pooler = ROIAlign((side, side), 1 / STRIDE, sampling_ratio=2, aligned=True)
        which = torch.arange(len(self), device=self.logits.device, dtype=torch.float32)
        regions = torch.cat([which[:, None], boxes.tensor.float()], dim=1)
        return pooler(self.logits.float().sigmoid()[:, None], regions)[:, 0]


def upsample(logits: Tensor, image_size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """Logits (n, h, w) at the size of the result, as Semantic FPN brings scores to it."""
    full = F.interpolate(logits[None].float(), scale_factor=STRIDE, mode="bilinear")[0]
    return sem_seg_postprocess(full, image_size, *output_size)


def mask_nms(masks: Tensor, scores: Tensor, classes: Tensor, iou_thresh: float) -> Tensor:
    """Greedy NMS by the IoU of masks, class by class.

    Args:
        masks: (n, h, w) bool.
        scores, classes: (n,).
        iou_thresh: IoU over which the mask of the lower score is dropped.

    Returns:
        (m,) int64, the indices of those that are kept, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    flat = masks.flatten(1)[order].float()
    inter, areas = flat @ flat.T, flat.sum(1)
    iou = inter / (areas[:, None] + areas - inter).clamp(min=1)
    same = classes[order][:, None] == classes[order]
    drops = ((iou > iou_thresh) & same).triu(1).cpu()
    kept = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if kept[i]:
            kept &= ~drops[i]
    return order[kept.to(order.device)]
