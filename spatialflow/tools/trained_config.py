"""The config and weights that a command shows: a person's own, or those of the project."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from spatialflow.config import load_config
from spatialflow.errors import UsageError, UserError
from spatialflow.model_zoo import config_name, get_checkpoint_url, get_config_file, shipped_configs

DEFAULT_MODEL = "camvid/spatialflow_lite0.yaml"
"""The config whose weights, which come with the project, are used when none is named."""


def read_config(config_file: str | None, opts: Sequence[str]) -> CfgNode:
    """The config; without weights in the overrides, with those that come with the project.

    Args:
        config_file: path of a config, or None for :data:`DEFAULT_MODEL`.
        opts: ``KEY VALUE ...`` overrides.

    Raises:
        UsageError: weights without a config.
        UserError: no config is named and the weights of the default one are not there.
    """
    weights_named = "MODEL.WEIGHTS" in list(opts)[::2]
    if config_file is None and weights_named:
        raise UsageError(
            "MODEL.WEIGHTS needs the --config-file that the weights were trained with."
        )
    if config_file is None:
        if DEFAULT_MODEL not in shipped_configs():
            raise UserError(
                f"The weights of the default model, {DEFAULT_MODEL}, do not come with this "
                "version. Name another config: --config-file, with its weights in --opts "
                f"MODEL.WEIGHTS, or one of {', '.join(shipped_configs())}, whose weights do."
            )
        config_file = get_config_file(DEFAULT_MODEL)
    cfg = load_config(config_file, opts)
    name = config_name(config_file)
    if not weights_named and name in shipped_configs():
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    return cfg


def set_confidence(cfg: CfgNode, threshold: float | None) -> None:
    """What ``--confidence-threshold`` does in Detectron2's demo.

    Args:
        cfg: changed in place.
        threshold: scores below it are not shown; None: as the config has it.
    """
    if threshold is None:
        return
    if cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED:
        cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = threshold
    else:
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
