"""The stuff branch: Semantic FPN's head on the stuff features at strides 8, 16 and 32.

Legend: N images, S labels ('other' included), H x W the padded network input.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn

from .layers import COCO_STUFF_LABELS, scale_msra_fill
from .loss_normalizer import mean_over_processes
from .norms import norm_for_processes

SCORES_AT_A_TIME = 2**26
"""Scores at the output size that :meth:`StuffHead.postprocess_labels` holds at most, 256 MB, or
those of one label."""


class StuffHead(SemSegFPNHead):
    """Detectron2's Semantic FPN head with this project's loss and resizing (Sec. III-A, Fig. 3b).

    Args:
        input_shape: shapes of the stuff features by name.
        align_corners: ``align_corners`` of every bilinear upsampling.
        resize: "bilinear" or "nearest", how scores are brought to the output size.
        hard_pixels: the share of an image's labelled pixels that count in the loss, those with the
            largest; 1: all.
        kwargs: arguments of Detectron2's head.

    Raises:
        ValueError: another ``resize``, or a share that is none.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        align_corners: bool = False,
        resize: str = "bilinear",
        hard_pixels: float = 1.0,
        **kwargs: Any,
    ):
        # By keyword: Detectron2 takes an OmegaConf mapping that comes first for a config.
        super().__init__(input_shape=input_shape, **kwargs)
        scale_msra_fill(self.predictor, COCO_STUFF_LABELS)
        if resize not in ("bilinear", "nearest"):
            raise ValueError(
                f"MODEL.SPATIALFLOW.STUFF_RESIZE is {resize!r}; give 'bilinear' or 'nearest'."
            )
        if not 0 < hard_pixels <= 1:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.LOSS_TOP_K is {hard_pixels}; give a share above 0, up to 1."
            )
        self.hard_pixels = hard_pixels
        self.align_corners = align_corners
        self.resize = resize
        for module in self.modules():
            if isinstance(module, nn.Upsample):
                module.align_corners = align_corners

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """``input_shape``: of exactly the levels that the stuff branch sees."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": head.NUM_CLASSES,
            "conv_dims": head.CONVS_DIM,
            "common_stride": head.COMMON_STRIDE,
            "loss_weight": head.LOSS_WEIGHT,
            "norm": norm_for_processes(head.NORM, cfg.MODEL.DEVICE),
            "ignore_value": head.IGNORE_VALUE,
            "align_corners": cfg.MODEL.SPATIALFLOW.ALIGN_CORNERS,
            "resize": cfg.MODEL.SPATIALFLOW.STUFF_RESIZE,
            "hard_pixels": head.LOSS_TOP_K,
        }

    def forward(self, features: list[Tensor]) -> Tensor:
        """Scores (N, S, H, W) from stuff_4 of P3 to P5, each (N, C, H_i, W_i)."""
        scores = self.layers(dict(zip(self.in_features, features, strict=True)))
        return F.interpolate(
            scores.float(),
            scale_factor=self.common_stride,
            mode="bilinear",
            align_corners=self.align_corners,
        )

    def losses(self, features: list[Tensor], targets: Tensor) -> dict[str, Tensor]:
        """``loss_sem_seg``, lambda times the mean over the pixels that have a label (eq. 6).

        With hard pixels it is the mean over these, of each image those with the largest loss, as
        DeepLab's "hard pixel mining" has them, but not of the batch: losses do not depend on how a
        batch is split.

        Args:
            features: see :meth:`forward`.
            targets: (N, H, W) int64.
        """
        scores = self(features)
        if self.hard_pixels < 1:
            loss, counted = hardest_pixels(scores, targets, self.ignore_value, self.hard_pixels)
        else:
            loss = stuff_loss(scores, targets, self.ignore_value)
            counted = (targets != self.ignore_value).sum()
        number = mean_over_processes(counted, like=targets)
        return {"loss_sem_seg": self.loss_weight * loss / number}

    def postprocess(
        self, scores: Tensor, image_size: tuple[int, int], output_size: tuple[int, int]
    ) -> Tensor:
        """Scores of one image at the output size.

        Args:
            scores: (S, H, W), padding included.
            image_size: (height, width) of the image without padding.
            output_size: (height, width) wanted.

        Returns:
            (S, *output_size).
        """
        if image_size == output_size:
            return scores[:, : image_size[0], : image_size[1]]
        if self.resize == "bilinear" and not self.align_corners:
            return sem_seg_postprocess(scores, image_size, *output_size)
        if self.resize == "bilinear":
            valid = scores[None, :, : image_size[0], : image_size[1]]
            return F.interpolate(valid, output_size, mode="bilinear", align_corners=True)[0]
        rows, columns = (
            _nearest(*sides).to(scores.device)
            for sides in zip(image_size, output_size, strict=True)
        )
        return scores[:, rows][:, :, columns]

    def postprocess_labels(
        self, scores: Tensor, image_size: tuple[int, int], output_size: tuple[int, int]
    ) -> Tensor:
        """The arg-max of :meth:`postprocess`, without the memory for its scores.

        Args:
            scores, image_size, output_size: see :meth:`postprocess`.

        Returns:
            (*output_size) int64.
        """
        best = scores.new_full(output_size, -math.inf)
        labels = torch.zeros(output_size, dtype=torch.int64, device=scores.device)
        step = max(1, SCORES_AT_A_TIME // best.numel())
        for first in range(0, len(scores), step):
            part = self.postprocess(scores[first : first + step], image_size, output_size)
            values, indices = part.max(dim=0)
            better = values > best
            torch.where(better, values, best, out=best)
            torch.where(better, indices + first, labels, out=labels)
        return labels


def stuff_loss(scores: Tensor, targets: Tensor, ignore_value: int) -> Tensor:
    """The sum of the cross-entropy over the pixels that have a label.

    Args:
        scores: (N, S, H, W).
        targets: (N, H, W) int64.
        ignore_value: target of pixels without a label.
    """
    return F.cross_entropy(scores, targets, ignore_index=ignore_value, reduction="sum")


def hardest_pixels(
    scores: Tensor, targets: Tensor, ignore_value: int, share: float
) -> tuple[Tensor, Tensor]:
    """The sum of the largest losses of each image, and how many they are.

    Args:
        scores, targets, ignore_value: see :func:`stuff_loss`.
        share: of the pixels of an image that have a label, at least one of them.
    """
    losses = F.cross_entropy(scores, targets, ignore_index=ignore_value, reduction="none")
    total, number = scores.sum() * 0, torch.zeros((), dtype=torch.int64, device=scores.device)
    for loss, target in zip(losses, targets, strict=True):
        labelled = loss[target != ignore_value]
        count = math.ceil(len(labelled) * share)
        total, number = total + labelled.topk(count).values.sum(), number + count
    return total, number


def _nearest(size: int, output_size: int) -> Tensor:
    """(output_size,) int64: the row of ``size`` that OpenCV takes for each row of the output.

    ``F.interpolate`` rounds otherwise and takes a neighbour of some of them.
    """
    step = 1 / (output_size / size)
    return (torch.arange(output_size, dtype=torch.float64) * step).long().clamp(max=size - 1)
