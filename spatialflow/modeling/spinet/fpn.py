"""The FPN of SPINet: P2 to P6 with strides 8, 8, 16, 32 and 32 (Sec. 3.1)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN
from fvcore.nn import weight_init
from torch import Tensor

from ..backbone import build_resnet
from ..layers import normalised_conv
from ..norms import norm_for_processes
from ..timm_backbone import build_hierarchical_backbone

LEVELS = ("p2", "p3", "p4", "p5", "p6")


class SPINetFPN(FPN):
    """Detectron2's FPN on C2 to C5 with a P2 of stride 8 and a P6 of stride 32.

    "We scale down C2 in half, generating P2 with a summation between halved C2 and P3"; "the
    generation of P6 is the same as P5, which is of stride 32". Readings: C2 is halved by the mean
    of 2x2 values before its lateral convolution, and P6 has a lateral and an output convolution of
    its own on C5.

    Args:
        with_p6: False on Cityscapes, which has no P6.
        kwargs: arguments of Detectron2's FPN.
    """

    def __init__(self, *, with_p6: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self._out_feature_strides["p2"] *= 2
        self.with_p6 = with_p6
        if with_p6:
            channels, norm = kwargs["out_channels"], kwargs["norm"]
            c5 = self.bottom_up.output_shape()[self.in_features[-1]].channels
            conv = partial(normalised_conv, fill=weight_init.c2_xavier_fill)
            self.fpn_lateral6 = conv(c5, channels, 1, norm)
            self.fpn_output6 = conv(channels, channels, 3, norm)
            self._out_feature_strides["p6"] = self._out_feature_strides["p5"]
            self._out_feature_channels["p6"] = channels
            self._out_features.append("p6")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The levels (N, C, H_i, W_i) by name, of images (N, 3, H, W)."""
        trunk = self.bottom_up(x)
        trunk = [trunk[name] for name in reversed(self.in_features)]
        trunk[-1] = F.avg_pool2d(trunk[-1], 2)
        merged, levels = None, []
        for feature, lateral, output in zip(
            trunk, self.lateral_convs, self.output_convs, strict=True
        ):
            side = lateral(feature)
            if merged is not None:
                side = side + F.interpolate(merged, side.shape[-2:], mode="nearest")
            merged = side
            levels.append(output(merged))
        levels.reverse()
        if self.with_p6:
            levels.append(self.fpn_output6(self.fpn_lateral6(trunk[0])))
        return dict(zip(self._out_features, levels, strict=True))


@BACKBONE_REGISTRY.register()
def build_spinet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SPINetFPN:
    """Build P2 to P5, and P6 where a part of the model reads it, on a ResNet from a config."""
    return _build_pyramid(cfg, build_resnet(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_spinet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SPINetFPN:
    """The same on a hierarchical model of timm, MODEL.TIMM.NAME."""
    return _build_pyramid(cfg, build_hierarchical_backbone(cfg, "MODEL.FPN.IN_FEATURES"))


def _build_pyramid(cfg: CfgNode, bottom_up: Backbone) -> SPINetFPN:
    keys = cfg.MODEL.SPINET
    return SPINetFPN(
        with_p6="p6" in {*keys.FEATURE_LEVELS, *keys.FILTER_LEVELS},
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=norm_for_processes(cfg.MODEL.FPN.NORM, cfg.MODEL.DEVICE),
    )
