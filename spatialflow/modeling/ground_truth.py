"""The ground truth of a training batch, as this project's mapper or Detectron2's makes it."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor

MADE_BY = (
    "spatialflow.data.PanopticMapper makes it, from COCO panoptic format too; Detectron2's "
    "DatasetMapper makes 'instances' from 'annotations' and 'sem_seg' from 'sem_seg_file_name' only"
)


def gt_instances(image: dict[str, Any], device: torch.device, *, masks: bool) -> Instances:
    """The things of one image.

    Args:
        image: input with ``instances``: ``gt_boxes``, ``gt_classes`` and, if masks are needed,
            ``gt_masks`` as BitMasks or PolygonMasks. Without things it needs no masks.
        device: device of the result.
        masks: whether masks are needed.

    Raises:
        ValueError: there are no instances, or things without masks.
    """
    instances = target(image, "instances").to(device)
    if masks and not instances.has("gt_masks"):
        if len(instances):
            raise ValueError(
                f"'instances' of {_name(image)} has no gt_masks, which train the masks of things: "
                "the dataset's annotations need a segmentation, and Detectron2's DatasetMapper "
                "use_instance_mask; or set MODEL.SPATIALFLOW.THING_ON False."
            )
        # Detectron2 leaves them out where there is nothing to see.
        none = torch.zeros((0, *instances.image_size), dtype=torch.bool, device=device)
        instances.gt_masks = BitMasks(none)
    return instances


def bit_masks(things: Instances) -> Tensor:
    """The ``gt_masks`` of the things of an image, (n, h, w) bool, on the device of its classes."""
    masks = things.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *things.image_size)
    return masks.tensor.to(things.gt_classes.device)


def crowd_mask(image: dict[str, Any], device: torch.device) -> Tensor:
    """Where one image has crowds: (h, w) bool. Without the key it has none."""
    given = image.get("crowd_mask")
    if given is None:
        return torch.zeros(image["image"].shape[-2:], dtype=torch.bool, device=device)
    return given.to(device)


def target(image: dict[str, Any], key: str) -> Any:
    """A target that training cannot do without; ValueError if it is not in the image's dict."""
    if image.get(key) is None:
        raise ValueError(f"Training needs {key!r}, which {_name(image)} does not have; {MADE_BY}.")
    return image[key]


def _name(image: dict[str, Any]) -> str:
    return f"image {image.get('file_name', image.get('image_id', 'without a file_name'))}"
