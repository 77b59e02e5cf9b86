"""Backbones of timm: ConvNeXt, Swin, EfficientNet and others below an FPN."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spatialflow.config import read_key

from .backbone import build_pyramid
from .timm_models import (
    PixelConversion,
    create_model,
    import_timm,
    is_plain_vit,
    model_options,
    pretrained_state,
    probe_model,
)

logger = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """Features of a timm model, which keeps its names in checkpoints.

    Batch norms stay timm's, since Detectron2's frozen ones would lose the activation that timm
    puts into them; where their statistics are to stay, they are kept in evaluation mode.

    Args:
        name: timm's name of the model, with or without the tag of its weights.
        options: what the model is created with, see :func:`model_options`.
        features: number of the output, among ``feature_info`` of the model, by the name that it
            gets here.
        pixels: brings the input to the model's own normalisation.
        freeze_at: how many of the first layers are frozen, as MODEL.BACKBONE.FREEZE_AT of
            Detectron2: 1 is the stem, 2 also what ends at stride 4, and so on. Of a plain ViT 1 is
            the embedding of patches and positions, and each more the next block.
        norm_eval: batch norms use the statistics of the weights and keep them.
        final_norm: features go through the norm behind the last layer.
        start_weights: where pretrained weights are, see MODEL.TIMM.WEIGHTS; the checkpointer loads
            them where training starts and no checkpoint does.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        features: Mapping[str, int],
        pixels: nn.Module,
        *,
        freeze_at: int = 0,
        norm_eval: bool = True,
        final_norm: bool = False,
        start_weights: str = "",
    ):
        super().__init__()
        self.name, self.options, self.start_weights = name, dict(options), start_weights
        self.norm_eval, self.final_norm = norm_eval, final_norm
        self.pixels = pixels
        self.model = create_model(name, num_classes=0, **options)
        infos = {feature: self.model.feature_info[i] for feature, i in features.items()}
        self._out_features = list(features)
        self._out_feature_strides = {k: info["reduction"] for k, info in infos.items()}
        self._out_feature_channels = {k: info["num_chs"] for k, info in infos.items()}
        self._indices = self.model.prune_intermediate_layers(
            list(features.values()), prune_norm=not final_norm
        )
        self._freeze(freeze_at)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The features, (N, C, h, w) each, of images as the config normalises them."""
        features = self.model.forward_intermediates(
            self.pixels(images),
            indices=self._indices,
            norm=self.final_norm,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return dict(zip(self._out_features, features, strict=True))

    def train(self, mode: bool = True) -> TimmBackbone:
        """Detectron2's, but for batch norms whose statistics are to stay."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                trained = any(p.requires_grad for p in module.parameters())
                module.train(mode and trained and not self.norm_eval)
        return self

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at < 1:
            return
        layers = self.layer_ids(coarse=True)
        last = freeze_at - 1
        if freeze_at > 1 and not is_plain_vit(self.model):
            last = self._last_layer_of_stride(2**freeze_at, layers)
        parameters = dict(self.model.named_parameters())
        for name, layer in layers.items():
            if layer <= last:
                parameters[name].requires_grad_(False)

    def _last_layer_of_stride(self, stride: int, layers: Mapping[str, int]) -> int:
        for info in self.model.feature_info:
            if info["reduction"] == stride:
                module = f"{info['module']}."
                return max((i for name, i in layers.items() if name.startswith(module)), default=0)
        return max(layers.values())

    def layer_ids(self, coarse: bool = False) -> dict[str, int]:
        """Number of the layer, from the input on, by name of the parameter in :attr:`model`.

        Args:
            coarse: stages instead of blocks.
        """
        matcher = self.model.group_matcher(coarse=coarse)
        return import_timm().models.group_parameters(self.model, matcher, reverse=True)

    def load_start_weights(self, state: Mapping[str, Tensor] | None) -> None:
        """Load pretrained weights.

        Args:
            state: see :func:`pretrained_state`.

        Raises:
            FileNotFoundError, ValueError: see :func:`pretrained_state`.
        """
        weights = pretrained_state(self.name, self.options, state)
        self.model.load_state_dict({key: weights[key] for key in self.model.state_dict()})


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an FPN on a hierarchical model of timm, MODEL.TIMM.NAME.

    MODEL.FPN.IN_FEATURES names strides as Detectron2 does, "res2" for 4 to "res5" for 32. From
    "res3" on, the levels are P3 to P7 for SpatialFlow and RetinaNet; with "res2" they are P2 to P6
    for R-CNNs.

    Raises:
        ValueError: see :func:`build_hierarchical_backbone`.
    """
    features = cfg.MODEL.FPN.IN_FEATURES
    bottom_up = build_hierarchical_backbone(cfg, "MODEL.FPN.IN_FEATURES")
    return build_pyramid(cfg, bottom_up, LastLevelMaxPool() if "res2" in features else None)


@BACKBONE_REGISTRY.register()
def build_timm_p2_p7_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """As :func:`build_timm_fpn_backbone`, with P2 to P7 where MODEL.FPN.IN_FEATURES has "res2".

    For a SpatialFlow whose things and stuff see P2, MODEL.SPATIALFLOW.SEGMENTATION_FEATURES.
    """
    return build_pyramid(cfg, build_hierarchical_backbone(cfg, "MODEL.FPN.IN_FEATURES"))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build a hierarchical model of timm without a pyramid, for MODEL.RPN.IN_FEATURES.

    With MODEL.RESNETS.OUTPUT_STRIDE dilation takes the place of later strides, if timm's model can.

    Raises:
        ValueError: see :func:`build_hierarchical_backbone`.
    """
    return build_hierarchical_backbone(cfg, "MODEL.RPN.IN_FEATURES")


def build_hierarchical_backbone(cfg: CfgNode, key: str) -> TimmBackbone:
    """The model of MODEL.TIMM for the features that a key names, "res2" (stride 4) to "res5" (32).

    Raises:
        ValueError: the model is a plain ViT, or lacks a stride.
    """
    probe, features = configured_probe(cfg), read_key(cfg, key)
    indices = _indices_by_stride(probe)
    missing = [feature for feature in features if feature not in indices]
    if missing:
        raise ValueError(
            f"{key} has {', '.join(missing)}, but timm's {cfg.MODEL.TIMM.NAME} has "
            f"{', '.join(indices) or 'none of them'}. Plain ViTs are for MODEL.BACKBONE.NAME "
            "'build_timm_vit_backbone'."
        )
    wanted = {feature: indices[feature] for feature in features}
    return create_backbone(cfg, probe, wanted, output_stride=cfg.MODEL.RESNETS.OUTPUT_STRIDE)


def configured_probe(cfg: CfgNode) -> Any:
    """The model of MODEL.TIMM.NAME without weights, see :func:`probe_model`.

    Raises:
        ValueError: no name, no timm, no such model, or one that does not give its features.
    """
    name = cfg.MODEL.TIMM.NAME
    if not name:
        raise ValueError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME!r}, but MODEL.TIMM.NAME is empty; "
            "give timm's name of a model, such as 'convnext_tiny'."
        )
    probe = probe_model(name)
    if not hasattr(probe, "forward_intermediates") or not getattr(probe, "feature_info", None):
        raise ValueError(
            f"MODEL.TIMM.NAME: timm's {name} does not give its features; take another."
        )
    return probe


def create_backbone(
    cfg: CfgNode,
    probe: Any,
    features: Mapping[str, int],
    final_norm: bool = False,
    output_stride: int = 32,
) -> TimmBackbone:
    """The model of MODEL.TIMM, with the licence of its weights in the log.

    Args:
        cfg: the config.
        probe: see :func:`configured_probe`.
        features, final_norm: see :class:`TimmBackbone`.
        output_stride: of the last feature; 32 is that of the model.
    """
    keys, data = cfg.MODEL.TIMM, probe.pretrained_cfg
    logger.info(
        f"Backbone {keys.NAME} of timm; licence of timm's weights {data.get('tag') or ''}: "
        f"{data.get('license') or 'not named by timm'}."
    )
    return TimmBackbone(
        keys.NAME,
        model_options(probe, keys.DROP_PATH, output_stride),
        features,
        PixelConversion(
            cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT, data["mean"], data["std"]
        ),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm_eval=keys.NORM_EVAL,
        final_norm=final_norm,
        start_weights=keys.WEIGHTS,
    )


def _indices_by_stride(probe: Any) -> dict[str, int]:
    """Number of the feature by Detectron2's name of its stride."""
    if is_plain_vit(probe):
        return {}
    strides = [info["reduction"] for info in probe.feature_info]
    return {f"res{k}": strides.index(2**k) for k in range(2, 6) if 2**k in strides}
