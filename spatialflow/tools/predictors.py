"""What serves and predicts: a config with weights, or a file that ``spatialflow export`` wrote."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from spatialflow.data.categories import Categories, Category
from spatialflow.errors import UserError

EXPORTED = (".onnx", ".xml")
"""Endings of exported files."""

PanopticOutput = tuple[np.ndarray, list[dict[str, Any]]]


class PanopticPredictor(Protocol):
    """A model that one thread calls.

    Attributes:
        name: how the model is called on the page.
        categories: its classes.
    """

    name: str
    categories: Categories

    def __call__(self, image: np.ndarray) -> PanopticOutput:
        """The map of a picture and its segments in Detectron2's terms.

        Args:
            image: (H, W, 3) uint8 in BGR order.

        Returns:
            (H, W) int32 ids, 0 for void, and dicts with ``id``, ``isthing``, ``category_id`` (thing
            class or stuff label) and, for things, ``score``.
        """


class ConfigPredictor:
    """A config with its weights.

    Args:
        config_file: path of a config; None: the one whose weights come with the project.
        opts: ``KEY VALUE ...`` overrides.

    Raises:
        UserError: its model makes no panoptic maps.
        FileNotFoundError, KeyError, ValueError: see :class:`spatialflow.Predictor`.
    """

    def __init__(self, config_file: str | None, opts: Sequence[str]) -> None:
        from spatialflow.inference.predictor import Predictor

        from .trained_config import DEFAULT_MODEL, read_config

        self._predictor = Predictor(read_config(config_file, list(opts)))
        if self._predictor.model.merge is None:
            raise UserError(
                "The model of this config makes no panoptic maps: set "
                "MODEL.PANOPTIC_FPN.COMBINE.ENABLED True in --opts, or take another config."
            )
        self.name = config_file or DEFAULT_MODEL
        self.categories = self._predictor.categories

    def __call__(self, image: np.ndarray) -> PanopticOutput:
        """See :class:`PanopticPredictor`."""
        ids, segments = self._predictor.panoptic(image)["panoptic_seg"]
        return ids.cpu().numpy(), segments


class ExportedPredictor:
    """An exported file, run without PyTorch by the package ``spatialflow_runtime``.

    Args:
        path: an .onnx file, or the .xml file of an OpenVINO IR.
        **settings: of :class:`spatialflow_runtime.PanopticModel`.

    Raises:
        UserError: the package is not installed, or the file stops before the panoptic map.
        FileNotFoundError, ValueError: the file is not found, or is no exported model.
    """

    def __init__(self, path: str, **settings: Any) -> None:
        try:
            from spatialflow_runtime import PanopticModel
        except ModuleNotFoundError as e:
            raise UserError(
                f"{path} is run by the package spatialflow_runtime, and {e.name} is not "
                "installed: install runtime/ of SpatialFlow's repository, or name a config: "
                "--config-file."
            ) from e
        self._model = PanopticModel(path, **settings)
        metadata = self._model.metadata
        if metadata.stop != "panoptic":
            raise UserError(f"{path} stops before the panoptic map; export it without --stop.")
        self.name = os.path.basename(path)
        self.categories = Categories(_parsed(metadata.things), _parsed(metadata.stuff))

    def __call__(self, image: np.ndarray) -> PanopticOutput:
        """See :class:`PanopticPredictor`."""
        return self._model(np.ascontiguousarray(image[:, :, ::-1]))["panoptic_seg"]


def _parsed(classes: Sequence[dict[str, Any]]) -> tuple[Category, ...]:
    return tuple(
        Category(c["id"], c["name"], (c["color"][0], c["color"][1], c["color"][2]), c["isthing"])
        for c in classes
    )
