"""Plain ViTs of timm, such as DINOv2 and DINOv3, below Detectron2's simple feature pyramid."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from torch import nn

from .backbone import build_p6_p7
from .norms import norm_for_processes
from .timm_backbone import configured_probe, create_backbone
from .timm_models import is_plain_vit

SCALES = {"res2": 4.0, "res3": 2.0, "res4": 1.0, "res5": 0.5}
"""How much larger than the only feature, of stride 16, a level of the pyramid is."""
FEATURE = "last_feat"


class ViTPyramid(SimpleFeaturePyramid):
    """Detectron2's, whose input is padded as that of an FPN is: to multiples of its last stride."""

    @property
    def size_divisibility(self) -> int:
        """The stride of the last level that the feature itself gives."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """None besides."""
        return {}


@BACKBONE_REGISTRY.register()
def build_timm_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ViTPyramid:
    """Build a simple feature pyramid (Li et al., ECCV 2022) on a plain ViT, MODEL.TIMM.NAME.

    MODEL.FPN.IN_FEATURES names the strides of the levels that the last feature is resized to, as in
    ``build_timm_fpn_backbone``, and so decides between P3 to P7 and P2 to P6.

    Raises:
        ValueError: the model is not a plain ViT.
    """
    probe, levels = configured_probe(cfg), cfg.MODEL.FPN.IN_FEATURES
    if not is_plain_vit(probe) or not hasattr(probe, "patch_embed"):
        raise ValueError(
            f"timm's {cfg.MODEL.TIMM.NAME} is not a plain ViT; set MODEL.BACKBONE.NAME to "
            "'build_timm_fpn_backbone'."
        )
    last = len(probe.feature_info) - 1
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    top: nn.Module = LastLevelMaxPool() if "res2" in levels else build_p6_p7(cfg, channels, "p5")
    return ViTPyramid(
        create_backbone(cfg, probe, {FEATURE: last}, final_norm=True),
        FEATURE,
        channels,
        [SCALES[level] for level in levels],
        top_block=top,
        norm=norm_for_processes(cfg.MODEL.FPN.NORM, cfg.MODEL.DEVICE),
    )
