"""Reading config files, and what is read from a config in several places."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from yaml import YAMLError

from .keys import add_spatialflow_config

CLASS_COUNT_UNSET = 0
"""Value of a class count that is to be taken from the dataset."""


def load_config(config_file: str, opts: Sequence[str] = ()) -> CN:
    """Read a config file and overrides, with messages that say what to change.

    Args:
        config_file: path of a YAML file, which may name a ``_BASE_``.
        opts: ``KEY VALUE KEY VALUE ...`` overrides.

    Returns:
        The config, not frozen.

    Raises:
        FileNotFoundError: the file, or a ``_BASE_`` it names, is missing.
        KeyError: a key that does not exist; the message names the closest one that does.
        ValueError: the file is no plain YAML mapping (tags that would run code are refused), or
            ``opts`` is not made of pairs.
    """
    cfg = get_cfg()
    add_spatialflow_config(cfg)
    try:
        # Detectron2's own merge_from_file would admit YAML's unsafe tags.
        loaded = CN(CN.load_yaml_with_base(config_file, allow_unsafe=False))
    except FileNotFoundError as e:
        raise FileNotFoundError(f"Config {config_file}: {e.filename or e} not found.") from e
    except RecursionError as e:
        raise ValueError(f"Config {config_file} is its own _BASE_, directly or not.") from e
    except (YAMLError, AssertionError, AttributeError, TypeError, UnicodeDecodeError) as e:
        raise ValueError(f"Config {config_file} is not a plain YAML mapping: {e}") from e
    _merge(cfg, lambda: cfg.merge_from_other_cfg(loaded), f"Config {config_file}")
    if len(opts) % 2:
        raise ValueError(f"Overrides come as KEY VALUE pairs; {opts[-1]!r} stands alone.")
    _merge(cfg, lambda: cfg.merge_from_list(list(opts)), "Command line")
    return cfg


def class_count_is_unset(cfg: CN, key: str) -> bool:
    """Whether a class count is to be taken from the dataset.

    It is 0 then. Of the counts that the meta-architecture does not name in its ``class_counts``,
    those of Detectron2's models, Detectron2's default stands for it as well: it is what they have
    if a config says nothing. The module of the meta-architecture is imported before this is asked.

    Args:
        cfg: a config.
        key: ``MODEL.<part>.NUM_CLASSES``.
    """
    if key in _class_counts(cfg):
        return read_key(cfg, key) == CLASS_COUNT_UNSET
    return read_key(cfg, key) in (CLASS_COUNT_UNSET, read_key(get_cfg(), key))


def _class_counts(cfg: CN) -> tuple[str, ...]:
    """The keys of the class counts that the meta-architecture of a config says it needs."""
    from detectron2.modeling import META_ARCH_REGISTRY  # here, as reading a config needs no model

    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        return ()
    return getattr(META_ARCH_REGISTRY.get(name), "class_counts", ())


def read_key(cfg: CN, key: str) -> Any:
    """The value of a key with dots in its name."""
    return functools.reduce(getattr, key.split("."), cfg)


def takes_original_images(cfg: CN) -> bool:
    """Whether what is evaluated resizes images itself: many views, or several models."""
    return cfg.TEST.AUG.ENABLED or bool(cfg.TEST.ENSEMBLE.MEMBERS)


def config_dir() -> Path:
    """The folder ``configs/`` of this project; an installed package carries a copy."""
    return (Path(__file__).parents[1] / "configs").resolve()


def _merge(cfg: CN, merge: Callable[[], None], where: str) -> None:
    try:
        merge()
    except (KeyError, AssertionError, ValueError) as e:
        message = str(e.args[0])
        if not message.startswith("Non-existent"):
            raise ValueError(f"{where}: {message}") from e
        key = message.rsplit(" ", 1)[-1]
        near = difflib.get_close_matches(key, list(_key_names(cfg)), n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise KeyError(f"{where}: there is no config key {key}{hint}") from e


def _key_names(cfg: CN, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CN):
            yield from _key_names(value, f"{prefix}{key}.")


def check_device(cfg: CN) -> None:
    """Raise a ValueError when MODEL.DEVICE or SOLVER.AMP asks for CUDA and there is none."""
    on_cuda = cfg.MODEL.DEVICE.startswith("cuda")
    if on_cuda and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but torch finds no CUDA device here. Append "
            "'MODEL.DEVICE cpu' to run on the CPU; 'spatialflow doctor' says what is missing for "
            "CUDA."
        )
    if cfg.SOLVER.AMP.ENABLED and not on_cuda:
        raise ValueError(
            f"SOLVER.AMP.ENABLED needs CUDA, but MODEL.DEVICE is {cfg.MODEL.DEVICE!r}. Append "
            "'SOLVER.AMP.ENABLED False'."
        )
