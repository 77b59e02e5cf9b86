"""The project's config files by name, as ``detectron2.model_zoo`` gives Detectron2's.

``MODEL_ZOO.md`` lists them with what is known of their results; it is made from
:mod:`spatialflow.tools.zoo.results` by ``spatialflow zoo > MODEL_ZOO.md``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from detectron2.config import CfgNode

from spatialflow.config import config_dir, load_config

PART_PREFIX = "Base-"
"""Files whose name begins with it are parts of configs, for ``_BASE_``."""


def config_names() -> list[str]:
    """The names of all configs that can be run, such as ``COCO/spatialflow_R_50_20e.yaml``."""
    files = [path for path in config_dir().rglob("*.yaml") if not path.name.startswith(PART_PREFIX)]
    return sorted(path.relative_to(config_dir()).as_posix() for path in files)


def get_config_file(name: str) -> str:
    """The path of a config file.

    Args:
        name: one of :func:`config_names`.

    Raises:
        ValueError: there is no config of that name; the message has those that are close to it.
    """
    names = config_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, cutoff=0.4) or names
        raise ValueError(f"There is no config {name!r}; did you mean {' or '.join(near)}?")
    return str(config_dir() / name)


def get_config(name: str, opts: Sequence[str] = ()) -> CfgNode:
    """A config, not frozen.

    Args:
        name: one of :func:`config_names`.
        opts: ``KEY VALUE KEY VALUE ...`` overrides.
    """
    return load_config(get_config_file(name), opts)
