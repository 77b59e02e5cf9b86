"""The semantic branch: pyramid pooling, then hybrid upsampling (Sec. 2.1).

Legend: N images, C channels, L labels, h x w the features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from fvcore.nn import weight_init
from torch import Tensor, nn

from ..loss_normalizer import mean_over_processes
from ..stuff_head import stuff_loss
from .pyramid_pooling import PyramidPooling

UPSAMPLING = 2
"""Of the deconvolution. *Reading*: the paper's reference for hybrid upsampling (Meletis and
Dubbelman, 2018) has kernels of 4x4 at stride 2."""


class SemanticHead(nn.Module):
    """Logits of every label: by a deconvolution to half the stride, then bilinearly.

    Args:
        channels: C.
        num_labels: L.
        stride: of the features.
        norm: of the pyramid pooling.
        loss_weight: lambda_6, of ``loss_sem_seg``.
        ignore_value: target of pixels without a label.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_labels: int,
        stride: int,
        norm: str,
        loss_weight: float,
        ignore_value: int,
    ):
        super().__init__()
        self.pooling = PyramidPooling(channels, norm)
        self.predictor = Conv2d(channels, num_labels, kernel_size=1)
        weight_init.c2_xavier_fill(self.predictor)
        self.deconv = nn.ConvTranspose2d(num_labels, num_labels, 4, stride=UPSAMPLING, padding=1)
        _fill_bilinear(self.deconv)
        self.scale_factor = stride // UPSAMPLING
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, L, 2h, 2w) from features (N, C, h, w)."""
        return self.deconv(self.predictor(self.pooling(features)))

    def upsample(self, logits: Tensor) -> Tensor:
        """What :meth:`forward` returned, or some of its channels, at the size of the input."""
        return F.interpolate(
            logits.float(), scale_factor=self.scale_factor, mode="bilinear", align_corners=False
        )

    def losses(self, features: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss_sem_seg``, the weighted mean of the cross-entropy over the labelled pixels.

        Args:
            features: (N, C, h, w).
            targets: (N, H, W) int64 at the size of the input.
        """
        loss = stuff_loss(self.upsample(self(features)), targets, self.ignore_value)
        labelled = mean_over_processes((targets != self.ignore_value).sum(), like=targets)
        return {"loss_sem_seg": self.loss_weight * loss / labelled}


@torch.no_grad()
def _fill_bilinear(deconv: nn.ConvTranspose2d) -> None:
    """Start as bilinear upsampling of each channel (Long et al., CVPR 2015)."""
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    deconv.weight.zero_()
    channels = torch.arange(deconv.in_channels)
    deconv.weight[channels, channels] = ramp[:, None] * ramp
    assert deconv.bias is not None
    deconv.bias.zero_()
