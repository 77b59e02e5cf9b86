#!/usr/bin/env python
"""Write the reference of the Python API as HTML; `make docs` calls this.

    python tools/make_docs.py build/docs

Every public module and what it documents, made by pdoc from the docstrings. A warning of pdoc, such
as an annotation or import that cannot be resolved, ends it with an error.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import warnings
from pathlib import Path

import pdoc
import pdoc.extract
import pdoc.render

import spatialflow


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--modules", nargs="+", default=["spatialflow"], help="and those below")
    args = parser.parse_args()
    write(args.modules, args.output)
    print(f"Open {args.output / 'index.html'}")


def write(modules: list[str], output: Path) -> None:
    """Write the pages of modules and of all below them.

    Raises:
        UserWarning: something cannot be resolved.
    """
    pdoc.render.configure(
        docformat="google", footer_text=f"SpatialFlow {spatialflow.__version__}", search=True
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"pdoc\b")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        for module in modules:
            resolve_lazy_names(module)
        pdoc.pdoc(*modules, "!spatialflow.__main__", output_directory=output)


def resolve_lazy_names(name: str) -> None:
    """Import what the package and those below it import when it is first used."""
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        setattr(module, public, getattr(module, public))
    for found in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        if found.ispkg:
            resolve_lazy_names(found.name)


if __name__ == "__main__":
    main()
