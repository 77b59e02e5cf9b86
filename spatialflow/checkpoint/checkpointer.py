"""Saving and loading checkpoints: nothing lost by a kill, nothing silently left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import nn

from spatialflow.utils.files import atomic_write
from spatialflow.utils.text import name_some

from .detectron2_zoo import HEADS_KEY, convert_heads, convert_zoo_model
from .safe import load_tensors
from .start_weights import load_start_weights

MAX_NAMED = 8
"""How many tensors of another shape an error message names before it only counts the rest."""


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with files that are read by ``load_tensors`` only.

    Reads what Detectron2 reads: its own ``.pth``, its model zoo's ``.pkl`` (Detectron2, Caffe2 and
    torchvision-converted, matched by name), ``.pyth`` of pycls, ``detectron2://`` and http URLs;
    and ``.safetensors``. A RetinaNet of that zoo is renamed for SpatialFlow, see
    :mod:`.detectron2_zoo`.
    Weights whose shapes do not fit the model are an error instead of being skipped. Checkpoints
    appear under their name only when complete.

    Args:
        model: the model, or its DistributedDataParallel wrapper.
        save_dir: folder of the checkpoints.
        complete: a key of the model that the weights lack is an error, as it should be for
            evaluation. Otherwise it is logged, so that training can start from a backbone.
        starts_afresh: names the tensors that are not loaded from weights but only on resuming.
        heads_weights: a Panoptic FPN of Detectron2's model zoo, whose mask head and stuff head a
            SpatialFlow gets where the weights lack them; "": none. Resuming does not read it.
        save_to_disk, checkpointables: as in ``DetectionCheckpointer``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        complete: bool = False,
        starts_afresh: Callable[[str], bool] = lambda name: False,
        heads_weights: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, save_dir, **kwargs)
        self._complete = complete
        self._starts_afresh = starts_afresh
        self._heads_weights = heads_weights
        self._source = ""
        self._holds = "the backbone"

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` and point ``last_checkpoint`` to it.

        Raises:
            FloatingPointError: a parameter is not finite; nothing is written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        refuse_non_finite(self.model, name)
        data = {"model": self.model.state_dict()}
        data.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        with atomic_write(path, "wb") as f:
            torch.save(data, f)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the file that ``--resume`` takes up."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint"), "w") as f:
            f.write(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint with its training state, or the weights of ``path``.

        Resuming is exact: a key that is missing in the checkpoint is an error.
        """
        if resume and self.has_checkpoint():
            self._complete, self._starts_afresh = True, lambda name: False
            self._heads_weights = ""
        return super().resume_or_load(path, resume=resume)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; see ``DetectionCheckpointer.load``.

        Without one, a backbone of timm gets the weights of MODEL.TIMM.WEIGHTS: a checkpoint holds
        the backbone, so nobody who has one needs them.

        Raises:
            FileNotFoundError: no such file, or its URL cannot be fetched.
            ValueError: the file is refused or damaged (``load_tensors``), does not fit, or needs a
                package that is not installed.
        """
        self._source, self._holds = path, "the backbone"
        if path:
            self._fetch(path)
        elif self._complete:
            raise ValueError("MODEL.WEIGHTS is empty: give the weights file to evaluate.")
        elif self._heads_weights:
            raise ValueError(
                f"{HEADS_KEY} gives heads to the model of MODEL.WEIGHTS, which is empty: set it to "
                "a RetinaNet of Detectron2's model zoo or to a backbone."
            )
        else:
            load_start_weights(self.model)
        try:
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it set after an error

    def _fetch(self, path: str, key: str = "MODEL.WEIGHTS") -> str:
        """Get the file of a config key onto this machine, where PathManager finds it again.

        Returns:
            Its path here.
        """
        try:
            local = self.path_manager.get_local_path(urlsplit(path)._replace(query="").geturl())
        except OSError as e:
            raise FileNotFoundError(
                f"Weights {path} could not be fetched ({e}). Download the file on a machine with "
                f"access and set {key} to its path."
            ) from e
        if not os.path.isfile(local):
            raise FileNotFoundError(f"Weights file {path} not found; check {key}.")
        return local

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return _zoo_format(_state_dict_of(load_tensors(filename), filename))
        if filename.endswith(".pyth"):
            state = _state_dict_of(load_tensors(filename), filename)["model_state"]
            return {"model": state, "__author__": "pycls", "matching_heuristics": True}
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return _state_dict_of(load_tensors(f), f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self._convert_zoo_model(checkpoint)
        if checkpoint.pop("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            from_caffe2 = checkpoint.get("__author__") == "Caffe2"
            checkpoint["model"] = _align(self.model.state_dict(), checkpoint["model"], from_caffe2)
        if self._heads_weights:
            self._add_heads(checkpoint)
        dropped = [k for k in checkpoint["model"] if self._starts_afresh(k.removeprefix("module."))]
        for key in dropped:
            del checkpoint["model"][key]
        return super()._load_model(checkpoint)

    def _convert_zoo_model(self, checkpoint: dict[str, Any]) -> None:
        """Replace the names of a model of Detectron2 that this one starts from, if it is one."""
        state = {key.removeprefix("module."): v for key, v in checkpoint["model"].items()}
        weights = convert_zoo_model(self.model, state, self._source)
        if weights is not None:
            checkpoint["model"] = weights
            checkpoint.pop("matching_heuristics", None)
            self._holds = "a RetinaNet of Detectron2"

    def _add_heads(self, checkpoint: dict[str, Any]) -> None:
        """Give weights the mask head and the stuff head of a Panoptic FPN where they lack them."""
        path = self._heads_weights
        state = self._load_file(self._fetch(path, HEADS_KEY))["model"]
        checkpoint["model"] = {**convert_heads(self.model, state, path), **checkpoint["model"]}
        self._source += f", with the heads of {path},"

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Say what did not fit; raise where going on would mean another model than asked for."""
        if incompatible.incorrect_shapes:
            raise ValueError(_shape_message(self._source, incompatible.incorrect_shapes))
        if not set(self.model.state_dict()) - set(incompatible.missing_keys):
            raise ValueError(
                f"{self._source} has none of the model's tensors; the first in it: "
                f"{name_some(incompatible.unexpected_keys)}. Is it a file of another project?"
            )
        missing = [k for k in incompatible.missing_keys if not k.endswith("num_batches_tracked")]
        missing = [k for k in missing if not self._starts_afresh(k)]
        if missing and self._complete:
            raise ValueError(
                f"{self._source} lacks {len(missing)} of the model's tensors: {name_some(missing)}"
                ". They would stay random. Give weights trained with this config, or the config "
                "these weights were trained with."
            )
        outside_backbone = [k for k in missing if not k.startswith("backbone.bottom_up.")]
        if missing and missing == outside_backbone:
            self.logger.info(
                f"{self._source} holds {self._holds}; the other {len(missing)} tensors start from "
                "their initialisation."
            )
            incompatible.missing_keys.clear()
        super()._log_incompatible_keys(incompatible)


def refuse_non_finite(model: nn.Module, name: str) -> None:
    """Raise a FloatingPointError that names the parameters of ``model`` with NaN or infinity."""
    bad = [key for key, value in model.named_parameters() if not value.isfinite().all()]
    if bad:
        raise FloatingPointError(
            f"Checkpoint {name} is not written: {name_some(bad)} hold NaN or infinity. Resume from "
            "the last checkpoint with a lower SOLVER.BASE_LR or with SOLVER.CLIP_GRADIENTS."
        )


def _state_dict_of(data: Any, filename: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{filename} holds a {type(data).__name__}, not a dict of tensors.")
    return data


def _zoo_format(data: dict[str, Any]) -> dict[str, Any]:
    """A model-zoo pickle as Detectron2 hands it on: itself, or Caffe2 blobs to match by name."""
    if "model" in data and "__author__" in data:
        return data
    blobs = {k: v for k, v in data.get("blobs", data).items() if not k.endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


def _align(model_state: dict, weights: dict, from_caffe2: bool) -> dict:
    """Detectron2's matching by name, with tensors of another shape kept for the error message."""
    aligned = align_and_update_state_dicts(model_state, weights, c2_conversion=from_caffe2)
    for key in [k for k in aligned if k not in model_state]:
        same = [k for k in model_state if k.endswith(f".{key}") and k not in aligned]
        if same:
            aligned[same[0]] = aligned.pop(key)
    return aligned


def _shape_message(source: str, incorrect_shapes: list[tuple]) -> str:
    rows = [
        f"{key}: {found} in the file, {asked} in the model"
        for key, found, asked in incorrect_shapes
    ]
    return (
        f"{source} does not fit the model:\n  "
        + "\n  ".join(rows[:MAX_NAMED])
        + (f"\n  and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else "")
        + "\nWhere only the last layers differ, the weights are of another class count: set "
        "MODEL.RETINANET.NUM_CLASSES and MODEL.SEM_SEG_HEAD.NUM_CLASSES (or DATASETS) to theirs, "
        "or, to train on other classes, MODEL.CLASS_LAYERS.REINIT to True. Otherwise "
        "use the config the weights were trained with."
    )
