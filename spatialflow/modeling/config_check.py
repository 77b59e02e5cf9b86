"""What a config must have, and must not ask for, where SpatialFlow is built from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from spatialflow.config import CLASS_COUNT_UNSET, read_key


class UnreadKey(NamedTuple):
    """A key of Detectron2 that SpatialFlow does not read.

    ``allowed``: the values that ask for nothing else than what is built, Detectron2's default
    among them. ``instead``: what decides in its place.
    """

    key: str
    allowed: Sequence[Any]
    instead: str


SEGMENTATION_FEATURES = (["p3", "p4", "p5"], ["p2", "p3", "p4", "p5"])
"""The values of MODEL.SPATIALFLOW.SEGMENTATION_FEATURES."""

UNREAD_KEYS = (
    UnreadKey("MODEL.RETINANET.NUM_CONVS", (4,), "MODEL.SPATIALFLOW.NUM_STAGES gives the stages"),
    UnreadKey(
        "MODEL.RETINANET.IN_FEATURES", (["p3", "p4", "p5", "p6", "p7"],), "it reads P3 to P7"
    ),
    UnreadKey(
        "MODEL.ROI_MASK_HEAD.NAME", ("MaskRCNNConvUpsampleHead",), "the thing head has its layers"
    ),
    UnreadKey("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", (False,), "each class has a mask"),
    UnreadKey("MODEL.SEM_SEG_HEAD.NAME", ("SemSegFPNHead",), "the stuff head is one of these"),
    UnreadKey(
        "MODEL.SEM_SEG_HEAD.IN_FEATURES",
        (["p2", "p3", "p4", "p5"], ["p3", "p4", "p5"]),
        "MODEL.SPATIALFLOW.SEGMENTATION_FEATURES gives the levels",
    ),
)
"""Others, such as ``MODEL.ROI_HEADS``, belong to parts that SpatialFlow does not have; tools set
some of them for all models at once."""


def check_config(cfg: CfgNode, class_counts: Sequence[str]) -> None:
    """Refuse a config that SpatialFlow cannot be built from, or would be built from otherwise.

    Args:
        cfg: the config.
        class_counts: keys of the number of things and of stuff labels.

    Raises:
        ValueError: a class count is not set, or a key that is not read has been changed.
    """
    check_class_counts(cfg, class_counts if cfg.MODEL.SPATIALFLOW.STUFF_ON else class_counts[:1])
    levels = list(cfg.MODEL.SPATIALFLOW.SEGMENTATION_FEATURES)
    if levels not in SEGMENTATION_FEATURES:
        raise ValueError(
            f"MODEL.SPATIALFLOW.SEGMENTATION_FEATURES is {levels}; give "
            f"{' or '.join(map(str, SEGMENTATION_FEATURES))}."
        )
    for key, allowed, instead in UNREAD_KEYS:
        value = read_key(cfg, key)
        if value not in allowed:
            raise ValueError(
                f"{key} is {value!r}, but SpatialFlow does not read it: {instead}. Leave the key "
                f"at {allowed[0]!r}."
            )


def check_class_counts(cfg: CfgNode, class_counts: Sequence[str]) -> None:
    """Raise a ValueError when one of the class counts that a model needs is not set."""
    for key in class_counts:
        if read_key(cfg, key) == CLASS_COUNT_UNSET:
            raise ValueError(
                f"{key} is not set. Call spatialflow.data.prepare_datasets(cfg) before the model "
                f"is built, which takes the class counts from the dataset, or set "
                f"{' and '.join(class_counts)}."
            )
