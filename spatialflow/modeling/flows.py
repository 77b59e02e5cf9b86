"""What a flow does with the features of its source and its target: modules by name.

Legend: N images, C channels, H_i x W_i the size of FPN level i. Which flows there are, and between
which stages, is :mod:`spatialflow.modeling.wiring`.
"""

from __future__ import annotations

import math

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from .layers import initialize

FLOW_REGISTRY = Registry("FLOW")
"""The values of ``MODEL.SPATIALFLOW.FLOW_TYPE``: subclasses of :class:`Flow` by name."""


class Flow(nn.Module):
    """Information from one sub-network to another at one stage; the base class.

    Args:
        channels: C, of source and target.
        out_channels: channels of the result: C where it is added to the target's feature, or those
            of the offsets and modulation of a deformable convolution, eq. (4).
    """

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.channels = channels
        self.out_channels = out_channels

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The feature that the target's stage receives.

        Args:
            source: (N, C, H_i, W_i), the feature of the source's stage; in eq. (4) the sum of both.
            target: (N, C, H_i, W_i), the feature that enters the target's stage, before any flow.

        Returns:
            (N, out_channels, H_i, W_i).
        """
        raise NotImplementedError

    def from_coarser(self, source: Tensor, target: Tensor) -> Tensor:
        """As the call, from a source of the next coarser level, brought to the target's size.

        Args:
            source: (N, C, H_{i+1}, W_{i+1}).
            target: (N, C, H_i, W_i).
        """
        return self(resize_like(source, target), target)

    def initialize(self, init: str) -> None:
        """Set the weights to initial values other than those of the constructor.

        Args:
            init: "msra", where the sub-networks have it, keeps the scale of features; the base
                class leaves the weights as they are then. "zero": the result is 0 until training
                changes it.
        """
        if init == "zero":
            raise NotImplementedError(
                f"{type(self).__name__} has no initialize() that makes it start at zero, as "
                "MODEL.SPATIALFLOW.FLOW_INIT asks for."
            )


@FLOW_REGISTRY.register()
class ConvFlow(Flow):
    """The paper's psi and zeta: a 3x3 convolution of the source, without an activation.

    Args:
        channels, out_channels: see :class:`Flow`.
    """

    kernel_size = 3

    def __init__(self, channels: int, out_channels: int):
        super().__init__(channels, out_channels)
        size = self.kernel_size
        self.conv = nn.Conv2d(channels, out_channels, size, padding=size // 2)
        initialize(self.conv, "normal")

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """See :class:`Flow`; the target does not matter."""
        return self.conv(source)

    def from_coarser(self, source: Tensor, target: Tensor) -> Tensor:
        """See :class:`Flow`; the convolution comes first, at a quarter of the cost."""
        return resize_like(self.conv(source), target)

    def initialize(self, init: str) -> None:
        """See :class:`Flow`."""
        initialize(self.conv, init)


@FLOW_REGISTRY.register()
class PointwiseFlow(ConvFlow):
    """:class:`ConvFlow` with a kernel of 1x1, for a ninth of its multiply-adds.

    The stages that a flow joins have 3x3 kernels of their own behind it.

    Args:
        channels, out_channels: see :class:`Flow`.
    """

    kernel_size = 1


@FLOW_REGISTRY.register()
class AttentionFlow(Flow):
    """Cross-attention: every cell of the target asks, every cell of the source answers.

    The papers add features up and expect more of "attention modules" (Sec. IV-D). This is the
    attention of Shen et al., "Efficient Attention", WACV 2021, whose matrix over all pairs of cells
    is a product of two thin ones and never computed:

        A = softmax_d(Q) softmax_cells(K)^T      rows that add up to 1
        flow = output(A V)                       Q of source + target, K and V of the source

    With h heads it takes 3 C^2 + C * out_channels + 2 C^2 / h multiply-adds a cell, for C = 256 and
    8 heads 0.47 times those of :class:`ConvFlow`, and memory linear in the number of cells.

    Args:
        channels, out_channels: see :class:`Flow`.
        num_heads: at most; their number divides C.
    """

    def __init__(self, channels: int, out_channels: int, num_heads: int = 8):
        super().__init__(channels, out_channels)
        self.num_heads = math.gcd(num_heads, channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(channels, out_channels, 1)
        for conv in (self.query, self.key, self.value, self.output):
            weight_init.c2_xavier_fill(conv)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """See :class:`Flow`."""
        query = self._heads(self.query(source + target)).softmax(dim=2)
        key = self._heads(self.key(source)).softmax(dim=3)
        summaries = self._heads(self.value(source)) @ key.transpose(2, 3)  # (N, h, C / h, C / h)
        attended = summaries @ query
        return self.output(attended.flatten(1, 2).unflatten(2, source.shape[-2:]))

    def initialize(self, init: str) -> None:
        """See :class:`Flow`; the constructor's values keep the scale of features anyway."""
        if init == "zero":
            initialize(self.output, init)

    def _heads(self, x: Tensor) -> Tensor:
        """(N, C, H_i, W_i) to (N, h, C / h, H_i * W_i)."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1))


def resize_like(feature: Tensor, like: Tensor) -> Tensor:
    """A feature (N, C, h, w) at the size of another one, bilinear."""
    return F.interpolate(feature, like.shape[-2:], mode="bilinear", align_corners=False)


def find_flow_type(name: str) -> type[Flow]:
    """The class of a flow by its name in :data:`FLOW_REGISTRY`; ValueError if there is none."""
    if name not in FLOW_REGISTRY:
        known = ", ".join(sorted(registered for registered, _ in FLOW_REGISTRY))
        raise ValueError(
            f"MODEL.SPATIALFLOW.FLOW_TYPE: there is no flow {name!r} in FLOW_REGISTRY; choose "
            f"among {known}, or import the module that registers it."
        )
    return FLOW_REGISTRY.get(name)
