"""Which norm layer stands for a config's NORM with the processes and the device there are."""

from __future__ import annotations

import logging

import torch.nn.functional as F
from detectron2 import layers as detectron2_layers
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import LayerNorm
from detectron2.utils import comm
from torch import Tensor, nn
from torch.compiler import is_exporting

logger = logging.getLogger(__name__)

PARTS_WITH_NORM = ("RESNETS", "FPN", "ROI_MASK_HEAD", "SEM_SEG_HEAD", "JSIS_NET")
"""Those below cfg.MODEL with a key NORM that a model of this project reads."""


class FusedLayerNorm(LayerNorm):
    """Detectron2's "LN", over the channels of each cell, as one operation.

    Detectron2 writes it as ten, each with a feature of its own kept for the gradients: 2.5 (NCHW)
    to 4.8 times (channels last) the time of a step forwards and backwards on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W); the result lies in memory as ``x`` does."""
        cells = x.movedim(1, -1)
        normalised = F.layer_norm(cells, self.normalized_shape, self.weight, self.bias, self.eps)
        y = normalised.movedim(-1, 1)
        # A file has no layout, and asking for it would tie the graph to a size.
        return y.contiguous() if not is_exporting() and x.is_contiguous() else y


def get_norm(norm: str, channels: int) -> nn.Module | None:
    """Detectron2's layer of this name, None for ""; "LN" is :class:`FusedLayerNorm`."""
    if norm == "LN":
        return FusedLayerNorm(channels)
    return detectron2_layers.get_norm(norm, channels)


def norm_for_processes(norm: str, device: str) -> str:
    """The norm that stands for ``norm`` with the processes and the device there are.

    SyncBN is batch norm in a single process, and on the CPU Detectron2's implementation in
    Python, as torch's needs CUDA; its mode "N" weighs each process by its images or regions, of
    which it may have none. The weights have the same names in all of them.

    Args:
        norm: value of a key NORM.
        device: MODEL.DEVICE.
    """
    if norm != "SyncBN":
        return norm
    if comm.get_world_size() == 1:
        return "BN"
    return norm if device.startswith("cuda") else "naiveSyncBN_N"


def norm_of_few_cells(norm: str) -> str:
    """The norm that stands for ``norm`` where a feature may be a single cell.

    GroupNorm has too few values there; "LN" is over the channels of each cell.
    """
    return "LN" if norm == "GN" else norm


def warn_of_syncbn_in_one_process(cfg: CfgNode) -> None:
    """Log a warning when a model is to be trained with SyncBN in a single process."""
    keys = [f"MODEL.{part}.NORM" for part in PARTS_WITH_NORM if cfg.MODEL[part].NORM == "SyncBN"]
    if keys and comm.get_world_size() == 1:
        logger.warning(
            f"{', '.join(keys)}: SyncBN is plain BN in a single process; its statistics are those "
            "of this process's images alone."
        )
