"""HTC's mask head: Mask R-CNN's, which takes the features of the mask head before it.

The mask information flow (Sec. 3.1): head t sees the region's features plus a 1x1 convolution of
what head t - 1 made of them before its upsampling.

Legend: R regions, C channels of a region's features, m their side, K thing classes, M = 2 m.
"""

from __future__ import annotations

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor, nn

from ..layers import COCO_THINGS, scale_msra_fill
from ..norms import norm_for_processes


@ROI_MASK_HEAD_REGISTRY.register()
class HTCMaskHead(MaskRCNNConvUpsampleHead):
    """One of the mask heads of the cascade.

    Args:
        input_shape: of a region's features.
        num_classes: K.
        conv_dims: channels of each 3x3 convolution, then of the upsampling.
        with_flow: whether it takes the features of another head; the first one does not, and has
            no weights for it.
        kwargs: other arguments of Detectron2's head.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        with_flow: bool = False,
        **kwargs: object,
    ):
        super().__init__(input_shape, num_classes=num_classes, conv_dims=conv_dims, **kwargs)
        # As in the authors' code; Detectron2's N(0, 0.001) hardly lets a gradient through at first.
        weight_init.c2_msra_fill(self.predictor)
        scale_msra_fill(self.predictor, COCO_THINGS)
        self.flow: nn.Module | None = None
        if with_flow:
            self.flow = Conv2d(conv_dims[-2], input_shape.channels, 1, activation=F.relu)
            weight_init.c2_msra_fill(self.flow)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, with_flow: bool = False) -> dict:
        """``MODEL.ROI_MASK_HEAD``."""
        norm = norm_for_processes(cfg.MODEL.ROI_MASK_HEAD.NORM, cfg.MODEL.DEVICE)
        return super().from_config(cfg, input_shape) | {"conv_norm": norm, "with_flow": with_flow}

    def features(self, regions: Tensor, previous: Tensor | None) -> Tensor:
        """What is upsampled here, and handed to the next head.

        Args:
            regions: (R, C, m, m).
            previous: :meth:`features` of the head before; None: nothing flows.

        Returns:
            (R, conv_dim, m, m).
        """
        x = regions
        if previous is not None:
            assert self.flow is not None
            x = x + self.flow(previous)
        for layer in self.conv_norm_relus:
            x = layer(x)
        return x

    def logits(self, features: Tensor) -> Tensor:
        """Mask logits (R, K, M, M) of what :meth:`features` gave."""
        return self.predictor(self.deconv_relu(self.deconv(features)))

    def layers(self, x: Tensor) -> Tensor:
        """Mask logits of regions (R, C, m, m) without a flow, as Detectron2's heads give them."""
        return self.logits(self.features(x, None))
