"""The project's configs and models by name, as ``detectron2.model_zoo`` gives Detectron2's.

``MODEL_ZOO.md`` lists the configs with what is known of their results; it is made from
:mod:`spatialflow.tools.zoo.results` by ``spatialflow zoo > MODEL_ZOO.md``.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_model
from torch import nn

from spatialflow.checkpoint import SafeCheckpointer
from spatialflow.config import config_dir, load_config
from spatialflow.data import prepare_datasets

from .shipped import read_card, set_shipped_classes, shipped_configs, shipped_weights

PART_PREFIX = "Base-"
"""Files whose name begins with it are parts of configs, for ``_BASE_``."""


def config_names(suffix: str = ".yaml") -> list[str]:
    """The names of all configs that can be run, such as ``COCO/spatialflow_R_50_20e.yaml``.

    Args:
        suffix: ``.py`` gives the lazy configs instead.
    """
    files = config_dir().rglob(f"*{suffix}")
    names = [path.relative_to(config_dir()) for path in files]
    return sorted(name.as_posix() for name in names if not name.name.startswith(PART_PREFIX))


def get_config_file(config_path: str) -> str:
    """The path of a config file.

    Args:
        config_path: one of :func:`config_names`.

    Raises:
        ValueError: there is no config of that name; the message has those that are close to it.
    """
    names = [*config_names(), *config_names(".py")]
    if config_path not in names:
        near = difflib.get_close_matches(config_path, names, cutoff=0.4) or names
        raise ValueError(f"There is no config {config_path!r}; did you mean {' or '.join(near)}?")
    return str(config_dir() / config_path)


def config_name(config_file: str) -> str | None:
    """The name of a config file, as :func:`config_names` has it; None for a file elsewhere."""
    path = Path(config_file).resolve()
    if not path.is_relative_to(config_dir()):
        return None
    return path.relative_to(config_dir()).as_posix()


def get_checkpoint_url(config_path: str) -> str:
    """The path of the weights that were trained with a config and come with the project.

    Args:
        config_path: one of :func:`config_names`.

    Raises:
        ValueError: there is no config of that name, or the weights are damaged.
        FileNotFoundError: the weights file is missing.
        RuntimeError: there are no weights for it.
    """
    get_config_file(config_path)
    if config_path in shipped_configs():
        weights = shipped_weights(config_path)
        read_card(weights)
        return str(weights)
    raise RuntimeError(
        f"No trained weights have been released for {config_path} yet; there are some for "
        f"{', '.join(shipped_configs())}. Train it with train_net.py, or convert the authors' "
        "weights for configs/released/ (spatialflow convert-checkpoint), and set MODEL.WEIGHTS to "
        "the file."
    )


def get_config(config_path: str, trained: bool = False) -> Any:
    """A config, a CfgNode that is not frozen or, from a ``.py`` file, a lazy one.

    Args:
        config_path: one of :func:`config_names`.
        trained: with the weights of :func:`get_checkpoint_url` instead of those it starts from.

    Raises:
        ValueError: there is no config of that name.
        RuntimeError: there are no trained weights for it.
    """
    path = get_config_file(config_path)
    cfg = LazyConfig.load(path) if path.endswith(".py") else load_config(path)
    if trained and isinstance(cfg, CfgNode):
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    elif trained:
        cfg.train.init_checkpoint = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model of this project with its weights, in training mode.

    Args:
        config_path: one of :func:`config_names`. Class counts are those of its dataset, whose
            images need not be there, or of its trained weights, which need no dataset.
        trained: see :func:`get_config`. Otherwise it has the weights that training starts from.
        device: instead of the config's; without CUDA it is the CPU.

    Raises:
        FileNotFoundError: the weights cannot be fetched, or the JSON of a dataset that is not one
            of Detectron2's is not there.
        ValueError: there is no config of that name.
        RuntimeError: there are no trained weights for it.
    """
    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
        if set_shipped_classes(cfg) is None:
            prepare_datasets(cfg, check_files=False)
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
        heads_weights = "" if trained else cfg.MODEL.SPATIALFLOW.HEADS_WEIGHTS
    else:
        model = instantiate(cfg.model).to(device or cfg.train.device)
        weights, heads_weights = cfg.train.init_checkpoint, ""
    SafeCheckpointer(model, heads_weights=heads_weights).load(weights)
    return model
