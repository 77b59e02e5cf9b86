"""The backbone: Detectron2's ResNet and FPN, with P6 and P7 made from C5 (Sec. III-A)."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import Tensor


class LastLevelP6P7NoRelu(LastLevelP6P7):
    """P6 and P7 as in the authors' code: P7 from P6 without a ReLU between."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        """P6 and P7, (N, C, H, W) each, from C5."""
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


@BACKBONE_REGISTRY.register()
def build_spatialflow_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build P3 to P7 on a ResNet from a config."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    last_level = LastLevelP6P7 if cfg.MODEL.SPATIALFLOW.P7_RELU else LastLevelP6P7NoRelu
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=last_level(bottom_up.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
