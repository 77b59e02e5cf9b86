"""HTC's semantic branch: all pyramid levels in one, scores, and an embedding (Sec. 3.2, Fig. 3).

Legend: N images, C channels of the pyramid, S labels, h x w the size of the level that the others
are brought to (P3, stride 8).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn

from ..layers import normalised_conv, scale_msra_fill
from ..loss_normalizer import mean_over_processes
from ..norms import norm_for_processes
from ..stuff_head import stuff_loss

NUM_CONVS = 4
COCO_STUFF_183 = 183
"""The labels of COCO-stuff, for which the start of the predictor is meant."""


class SemanticOutputs(NamedTuple):
    """Scores (N, S, h, w), and the embedding (N, C, h, w), which is None if nothing reads it."""

    scores: Tensor
    embedding: Tensor | None


class FusedSemanticHead(nn.Module):
    """1x1 convolutions of the levels at one size, their sum, four 3x3 convolutions, two outputs.

    Args:
        input_shape: shapes of the levels by name, all of one width C.
        num_classes: S.
        conv_dim: channels of the 3x3 convolutions.
        common_stride: stride of the level that the others are brought to.
        norm: name of a norm of Detectron2 behind each convolution but the scores; "": none.
        loss_weight: beta of the loss (Sec. 3.3).
        ignore_value: target of pixels without a label.
        with_embedding: whether the region heads read the embedding.

    Raises:
        ValueError: no level has the common stride.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: Mapping[str, ShapeSpec],
        num_classes: int,
        conv_dim: int,
        common_stride: int,
        norm: str,
        loss_weight: float,
        ignore_value: int,
        with_embedding: bool,
    ):
        super().__init__()
        self.in_features = list(input_shape)
        strides = {shape.stride: name for name, shape in input_shape.items()}
        if common_stride not in strides:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {common_stride}, but the levels of "
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES have the strides {sorted(strides)}."
            )
        self.fusion_level, self.common_stride = strides[common_stride], common_stride
        self.loss_weight, self.ignore_value = loss_weight, ignore_value
        channels = input_shape[self.fusion_level].channels
        conv = partial(normalised_conv, activation=F.relu)
        self.lateral_convs = nn.ModuleDict(
            {name: conv(channels, channels, 1, norm) for name in input_shape}
        )
        widths = [channels] + [conv_dim] * NUM_CONVS
        self.convs = nn.Sequential(
            *(conv(*pair, 3, norm) for pair in zip(widths, widths[1:], strict=False))
        )
        self.embedding = conv(conv_dim, channels, 1, norm) if with_embedding else None
        self.predictor = Conv2d(conv_dim, num_classes, 1)
        weight_init.c2_msra_fill(self.predictor)
        scale_msra_fill(self.predictor, COCO_STUFF_183)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """``MODEL.SEM_SEG_HEAD``, and the labels and the fusion of ``MODEL.HTC``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "num_classes": cfg.MODEL.HTC.COCO_STUFF_LABELS or head.NUM_CLASSES,
            "conv_dim": head.CONVS_DIM,
            "common_stride": head.COMMON_STRIDE,
            "norm": norm_for_processes(head.NORM, cfg.MODEL.DEVICE),
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
            "with_embedding": bool(cfg.MODEL.HTC.SEMANTIC_FUSION),
        }

    def forward(self, pyramid: Mapping[str, Tensor]) -> SemanticOutputs:
        """Scores and embedding of the pyramid's levels by name.

        Levels are resized before their 1x1 convolution, corners aligned, as in the authors' code.
        """
        size = pyramid[self.fusion_level].shape[-2:]
        fused = torch.zeros_like(pyramid[self.fusion_level])
        for name, lateral in self.lateral_convs.items():
            level = pyramid[name]
            if name != self.fusion_level:
                level = F.interpolate(level, size, mode="bilinear", align_corners=True)
            fused = fused + lateral(level)
        features = self.convs(fused)
        embedding = None if self.embedding is None else self.embedding(features)
        return SemanticOutputs(self.predictor(features), embedding)

    def losses(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss_sem_seg``, beta times the mean over the cells that have a label.

        A cell's label is that of the pixel in its middle. The authors' code takes its first pixel;
        that would move the scores by half a cell against :meth:`upsample`.

        Args:
            scores: (N, S, h, w).
            targets: (N, H, W) int64, H and W being the stride times h and w.
        """
        middle = self.common_stride // 2
        targets = targets[:, middle :: self.common_stride, middle :: self.common_stride]
        loss = stuff_loss(scores.float(), targets, self.ignore_value)
        labelled = mean_over_processes((targets != self.ignore_value).sum(), like=targets)
        return {"loss_sem_seg": self.loss_weight * loss / labelled}

    def upsample(self, scores: Tensor) -> Tensor:
        """Scores (N, S, h, w) at the size of the network's input."""
        return F.interpolate(
            scores.float(), scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )
