"""Weights alone, without the state of a training: ``.pth`` or ``.safetensors``, whole or half."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spatialflow.utils.files import atomic_write
from spatialflow.utils.text import name_some

from .safe import import_safetensors, load_tensors

FORMATS = (".pth", ".safetensors")


def load_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint of this project or of any file of tensors by name.

    Args:
        path: see :func:`load_tensors`; under the key "model", or at the top.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is refused or damaged, or is no dict of tensors.
    """
    data = load_tensors(path)
    tensors = data.get("model", data) if isinstance(data, Mapping) else data
    if not isinstance(tensors, Mapping):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, not a dict of tensors.")
    others = [str(key) for key, value in tensors.items() if not isinstance(value, Tensor)]
    if others or not tensors:
        raise ValueError(f"{path} has no tensors by name: {name_some(others) or 'it is empty'}.")
    return dict(tensors)


def save_weights(tensors: Mapping[str, Tensor], path: str, *, half: bool = False) -> None:
    """Write weights that ``MODEL.WEIGHTS`` takes.

    Args:
        tensors: by name.
        path: the file, ``.pth`` or ``.safetensors``; it appears only when complete.
        half: floating-point numbers as float16, which a model of float32 loads as they are.

    Raises:
        ValueError: another ending; a package is missing; or half precision has no such numbers.
    """
    ending = os.path.splitext(path)[1]
    if ending not in FORMATS:
        raise ValueError(f"{path}: weights are written to {' or '.join(FORMATS)} files.")
    if half:
        tensors = {key: _half(value) for key, value in tensors.items()}
        bad = [key for key, value in tensors.items() if not value.isfinite().all()]
        if bad:
            raise ValueError(
                f"{path} is not written: in half precision, {name_some(bad)} are not finite."
            )
    # Copies: a tensor may be a part of another, or share its memory.
    copies = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    data: Any = import_safetensors().save(copies, {"format": "pt"}) if ending != ".pth" else None
    with atomic_write(path, "wb") as f:
        if data is None:
            torch.save({"model": copies}, f)
        else:
            f.write(data)


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value
