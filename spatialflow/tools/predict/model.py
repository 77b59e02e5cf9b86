"""The model of a run: what identifies it, the same on every machine, and how a worker loads it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import spatialflow
from spatialflow.errors import UsageError, UserError
from spatialflow.utils.files import digest_of
from spatialflow.utils.user_modules import import_modules

from ..executors import processes
from ..predictors import EXPORTED, ConfigPredictor, ExportedPredictor, PanopticPredictor


@dataclass(frozen=True)
class ModelChoice:
    """What the arguments say of the model.

    Attributes:
        config_file, opts: a config, or that of the demo, and its overrides.
        exported: an exported file in place of a config.
        predictor: ``MODULE:FUNCTION``, a function of the user's that returns a
            :class:`~spatialflow.tools.predictors.PanopticPredictor`, in place of both.
        modules: modules of the user's, imported first.
        threads: of a process.
        max_pixels: of the largest picture.
    """

    config_file: str | None
    opts: tuple[str, ...]
    exported: str | None
    predictor: str | None
    modules: tuple[str, ...]
    threads: int
    max_pixels: int

    def __post_init__(self) -> None:
        others = [self.config_file or self.opts, self.exported, self.predictor]
        if sum(map(bool, others)) > 1:
            raise UsageError(
                "One model: --config-file with --weights and --opts, or --model, or --predictor."
            )
        if self.exported is not None and not self.exported.endswith(EXPORTED):
            raise UsageError(
                f"--model {self.exported}: an exported file ends in {' or '.join(EXPORTED)}; "
                "weights of a config are --weights."
            )

    def identity(self) -> dict[str, Any]:
        """Digests of all that decides about the results.

        Raises:
            UserError: there are no weights.
            FileNotFoundError, KeyError, ValueError: a file is missing or damaged.
        """
        import_modules(self.modules)
        known: dict[str, Any] = {"version": spatialflow.__version__, "threads": self.threads}
        known["max_pixels"] = self.max_pixels
        known["modules"] = {Path(m).stem: _source_digest(m) for m in self.modules}
        if self.predictor is not None:
            module = self.predictor.partition(":")[0]
            import_module(module)
            return {**known, "config": self.predictor, "weights": _source_digest(module)}
        if self.exported is not None:
            return {**known, "config": "exported", "weights": _digest_of_exported(self.exported)}
        return known | _identity_of_config(self.config_file, self.opts)

    def load(self) -> PanopticPredictor:
        """The model, in a worker.

        Raises:
            FileNotFoundError, KeyError, ValueError, UserError: see the predictors.
        """
        import_modules(self.modules)
        if self.predictor is not None:
            module, _, name = self.predictor.partition(":")
            return getattr(import_module(module), name)()
        if self.exported is not None:
            return ExportedPredictor(
                self.exported, threads=self.threads, max_pixels=self.max_pixels
            )
        import torch

        torch.set_num_threads(self.threads)
        if torch.cuda.is_available():
            torch.cuda.set_device(processes.number % torch.cuda.device_count())
        return ConfigPredictor(self.config_file, self.opts)


def _identity_of_config(config_file: str | None, opts: Sequence[str]) -> dict[str, Any]:
    from detectron2.utils.file_io import PathManager

    from spatialflow.config import load_config
    from spatialflow.inference.load import find_config

    from ..trained_config import read_config

    cfg = read_config(config_file, opts)
    configs, weights = [cfg], [cfg.MODEL.WEIGHTS]
    if members := cfg.TEST.ENSEMBLE.MEMBERS:
        configs += [load_config(find_config(m["CONFIG"]), m.get("OPTS", [])) for m in members]
        weights = [m["WEIGHTS"] for m in members]
    if not all(weights):
        raise UserError("Which weights? --weights W, or MODEL.WEIGHTS in the config.")
    digests = [digest_of(PathManager.get_local_path(path)) for path in weights]
    for each in configs:  # places, not what is there
        each.MODEL.WEIGHTS = each.OUTPUT_DIR = ""
    text = "".join(each.dump() for each in configs)
    return {"config": hashlib.sha256(text.encode()).hexdigest(), "weights": " ".join(digests)}


def _digest_of_exported(path: str) -> str:
    """Of the file and, of an OpenVINO IR, its weights beside it."""
    files = [path, os.path.splitext(path)[0] + ".bin"] if path.endswith(".xml") else [path]
    for file in files:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"Model file {file} not found.")
    return " ".join(map(digest_of, files))


def _source_digest(module: str) -> str:
    name = Path(module).stem if module.endswith(".py") else module
    file = sys.modules[name].__file__
    return digest_of(file) if file else ""
