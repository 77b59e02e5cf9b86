"""The backbone: Detectron2's ResNet and FPN, with P6 and P7 made from C5 (Sec. III-A)."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import ResNet, build_resnet_backbone
from fvcore.nn import weight_init
from torch import Tensor, nn

from .deform_conv import DeformBottleneckBlock
from .layers import normalised_conv
from .norms import get_norm, norm_for_processes, norm_of_few_cells


class P6P7(LastLevelP6P7):
    """P6 and P7 from the last feature of the backbone, normalised like the levels below them.

    Without a norm beside normalised levels, their scale is many times that of P3 to P5 and grows in
    training, and the sub-networks and flows that all levels share suffer.

    Args:
        in_channels: channels of the last feature.
        out_channels: channels of a level.
        norm: of each level, as ``FPN.NORM``; "" is none, as in the paper. For "GN" stands "LN",
            over the channels of each cell: of a small image P7 is a single cell, which leaves
            GroupNorm too few values.
        relu: a ReLU on P6 before the convolution that makes P7; the authors' code has none.
        in_feature: name of the last feature.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: str = "",
        relu: bool = True,
        in_feature: str = "res5",
    ):
        super().__init__(in_channels, out_channels, in_feature)
        self.relu = relu
        norm = norm_of_few_cells(norm)
        if norm:
            conv = partial(normalised_conv, stride=2, fill=weight_init.c2_xavier_fill)
            self.p6 = conv(in_channels, out_channels, 3, norm)
            self.p7 = conv(out_channels, out_channels, 3, norm)

    def forward(self, c5: Tensor) -> list[Tensor]:
        """P6 and P7, (N, C, H, W) each, from C5."""
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6) if self.relu else p6)]


class DeepLabStem(CNNBlockBase):
    """Three 3x3 convolutions in place of the 7x7 one, then max pooling: stride 4.

    The parameters have the names of those in Detectron2's DeepLab project, which is not installed
    with it, so that its ImageNet weights (``ImageNetPretrained/.../DeepLab/R-52.pkl``) load.

    Args:
        in_channels, out_channels: of the stem; the first two convolutions have half of the latter.
        norm: norm of the convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__(in_channels, out_channels, 4)
        half = out_channels // 2
        self.conv1 = _stem_conv(in_channels, half, norm, stride=2)
        self.conv2 = _stem_conv(half, half, norm)
        self.conv3 = _stem_conv(half, out_channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / 4, W / 4)."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu_(conv(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


def _stem_conv(in_channels: int, out_channels: int, norm: str, stride: int = 1) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=1,
        bias=False,
        norm=get_norm(norm, out_channels),
    )
    weight_init.c2_msra_fill(conv)
    return conv


@BACKBONE_REGISTRY.register()
def build_spatialflow_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet without a pyramid from a config, see :func:`build_resnet`."""
    return build_resnet(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_spatialflow_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build P3 to P7 on a ResNet from a config."""
    bottom_up = build_resnet(cfg, input_shape)
    return build_pyramid(cfg, bottom_up)


def build_pyramid(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None = None) -> FPN:
    """The FPN of ``MODEL.FPN``.

    Args:
        cfg: the config.
        bottom_up: gives the features of ``MODEL.FPN.IN_FEATURES``.
        top_block: makes the levels behind the last one; default: P6 and P7 from the last feature
            (Sec. III-A).
    """
    last = cfg.MODEL.FPN.IN_FEATURES[-1]
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=norm_for_processes(cfg.MODEL.FPN.NORM, cfg.MODEL.DEVICE),
        top_block=top_block or build_p6_p7(cfg, bottom_up.output_shape()[last].channels, last),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_p6_p7(cfg: CfgNode, in_channels: int, in_feature: str) -> P6P7:
    """P6 and P7 of a config from a feature of the backbone."""
    return P6P7(
        in_channels,
        cfg.MODEL.FPN.OUT_CHANNELS,
        norm_for_processes(cfg.MODEL.FPN.NORM, cfg.MODEL.DEVICE),
        cfg.MODEL.SPATIALFLOW.P7_RELU,
        in_feature,
    )


@BACKBONE_REGISTRY.register()
def build_p2_p6_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's R-CNN backbone, P2 to P6, on :func:`build_resnet` with its deformable stages."""
    return build_pyramid(cfg, build_resnet(cfg, input_shape), LastLevelMaxPool())


def build_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet, whose deformable stages and SyncBN run on every installation.

    Reads the same keys, and loads the same checkpoints, as Detectron2's ``build_resnet_backbone``
    and, with ``MODEL.RESNETS.STEM_TYPE`` "deeplab", as that of its DeepLab project. With
    ``OUTPUT_STRIDE`` dilation takes the place of later strides.

    Raises:
        ValueError: deformable stages in a ResNet without bottlenecks; another ``STEM_TYPE``.
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
    dilate(resnet, resnets.get("OUTPUT_STRIDE", 32))  # no key of Detectron2's own configs
    stem = resnets.get("STEM_TYPE", "basic")  # a config of Detectron2 does not have the key
    if stem == "deeplab":
        resnet.stem = DeepLabStem(
            input_shape.channels, resnets.STEM_OUT_CHANNELS, norm=resnets.NORM
        )
        if cfg.MODEL.BACKBONE.FREEZE_AT >= 1:
            resnet.stem.freeze()
    elif stem != "basic":
        raise ValueError(f'MODEL.RESNETS.STEM_TYPE is "basic" or "deeplab", not {stem!r}.')
    # Stages after the last one that is needed do not exist.
    for on, stage in zip(deformable, resnet.stages, strict=False):
        for i, block in enumerate(stage if on else ()):
            stage[i] = DeformBottleneckBlock(
                block,
                modulated=resnets.DEFORM_MODULATED,
                deformable_groups=resnets.DEFORM_NUM_GROUPS,
            )
    return resnet


def dilate(resnet: ResNet, output_stride: int) -> None:
    """Give stages dilation in place of their stride once the features have an output stride.

    All 3x3 convolutions of such a stage are dilated, those of its first block too, as Detectron2
    does it for res5 alone (Chen et al., "Rethinking Atrous Convolution", 2017, Sec. 3.1). Weights
    keep names and shapes.

    Args:
        resnet: changed in place.
        output_stride: pixels of the image to a cell of the last feature, at most.
    """
    stride, dilation = resnet.stem.stride, 1
    for name, stage in zip(resnet.stage_names, resnet.stages, strict=True):
        if stride * stage[0].stride > output_stride:
            dilation *= stage[0].stride
            stage[0].stride = 1
            for conv in _convolutions(stage):
                conv.stride = (1, 1)
        for conv in _convolutions(stage):
            if dilation > 1 and conv.kernel_size != (1, 1):
                conv.padding = conv.dilation = tuple(dilation * d for d in conv.dilation)
        stride *= stage[0].stride
        resnet._out_feature_strides[name] = stride


def _convolutions(stage: nn.Module) -> list[nn.Conv2d]:
    return [module for module in stage.modules() if isinstance(module, nn.Conv2d)]
