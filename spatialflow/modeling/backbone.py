"""The backbone: Detectron2's ResNet and FPN, with P6 and P7 made from C5 (Sec. III-A)."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from detectron2.modeling.backbone.resnet import ResNet, build_resnet_backbone
from torch import Tensor

from .deform_conv import DeformBottleneckBlock
from .norms import norm_for_processes


class LastLevelP6P7NoRelu(LastLevelP6P7):
    """P6 and P7 as in the authors' code: P7 from P6 without a ReLU between."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        """P6 and P7, (N, C, H, W) each, from C5."""
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


@BACKBONE_REGISTRY.register()
def build_spatialflow_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build P3 to P7 on a ResNet from a config."""
    bottom_up = build_resnet(cfg, input_shape)
    last_level = LastLevelP6P7 if cfg.MODEL.SPATIALFLOW.P7_RELU else LastLevelP6P7NoRelu
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=norm_for_processes(cfg.MODEL.FPN.NORM, cfg.MODEL.DEVICE),
        top_block=last_level(bottom_up.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet, whose deformable stages and SyncBN run on every installation.

    Reads the same keys, and loads the same checkpoints, as Detectron2's ``build_resnet_backbone``.

    Raises:
        ValueError: deformable stages in a ResNet without bottlenecks.
    """
    cfg = cfg.clone()
    cfg.defrost()
    resnets = cfg.MODEL.RESNETS
    deformable = resnets.DEFORM_ON_PER_STAGE
    if any(deformable) and resnets.DEPTH < 50:
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {deformable}, but a ResNet of "
            f"MODEL.RESNETS.DEPTH {resnets.DEPTH} has no bottlenecks; use 50, 101 or 152."
        )
    resnets.DEFORM_ON_PER_STAGE = [False] * len(deformable)
    resnets.NORM = norm_for_processes(resnets.NORM, cfg.MODEL.DEVICE)
    resnet = build_resnet_backbone(cfg, input_shape)
    # Stages after the last one that is needed do not exist.
    for on, stage in zip(deformable, resnet.stages, strict=False):
        for i, block in enumerate(stage if on else ()):
            stage[i] = DeformBottleneckBlock(
                block,
                modulated=resnets.DEFORM_MODULATED,
                deformable_groups=resnets.DEFORM_NUM_GROUPS,
            )
    return resnet
