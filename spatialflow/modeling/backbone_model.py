"""How images and labels become the input of the models of this project."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor

from .panoptic import HeuristicMerge, Merge
from .panoptic_model import PanopticModel


class BackboneModel(PanopticModel):
    """A panoptic model on a backbone, which decides to what size its input is padded.

    Args:
        backbone: its size divisibility is the model's.
        pixel_mean, pixel_std: of the channels of the input, in its order.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: Backbone, pixel_mean: Sequence[float], pixel_std: Sequence[float]):
        super().__init__()
        self.backbone = backbone
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.size_divisibility = backbone.size_divisibility

    @classmethod
    def build_merge(cls, cfg: CfgNode) -> Merge | None:
        """Panoptic FPN's merge by MODEL.PANOPTIC_FPN.COMBINE; None when it is not enabled."""
        return HeuristicMerge.from_config(cfg)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images, then pad them with zeros to one size the backbone can take."""
        images = [
            (x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs
        ]
        return self._padded(images, 0)

    def pad_labels(self, labels: Sequence[Tensor], value: int) -> Tensor:
        """Labels (h, w) of each image as (N, H, W), padded with a value as the images are."""
        return self._padded([x.to(self.device) for x in labels], value).tensor

    def _padded(self, tensors: list[Tensor], value: int) -> ImageList:
        return ImageList.from_tensors(
            tensors, self.size_divisibility, value, self.backbone.padding_constraints
        )
