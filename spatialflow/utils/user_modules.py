"""Importing the user's modules, which register what their configs name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from spatialflow.errors import UserError


def import_modules(names: Iterable[str]) -> None:
    """Import modules, each once in a process.

    Args:
        names: dotted names, looked for in the current folder first, or paths of ``.py`` files.

    Raises:
        UserError: one of them is not found, or its name is that of another module.
    """
    for name in names:
        if name.endswith(".py"):
            _import_file(Path(name))
        else:
            _import_name(name)


def _import_name(name: str) -> None:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        import_module(name)
    except ModuleNotFoundError as e:
        # A module that is found and lacks another one keeps its traceback.
        if e.name is None or not f"{name}.".startswith(f"{e.name}."):
            raise
        raise UserError(
            f"--import {name}: module {e.name} not found in {folder} or among the installed "
            "packages. Give a dotted name such as my_package.backbone, or a path that ends in .py."
        ) from e


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"--import {path}: file not found.")
    name, path = path.stem, path.resolve()
    if name in sys.modules:
        found = getattr(sys.modules[name], "__file__", None)
        if found is not None and Path(found).resolve() == path:
            return
        raise UserError(
            f"--import {path}: another module {name} is imported ({found}). Rename the file."
        )
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--import {path}: not a Python file.")
    module = module_from_spec(spec)
    sys.modules[name] = module  # as import does, for dataclasses and pickle
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
