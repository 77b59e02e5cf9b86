"""Recordings of the authors' released code: inputs, weights and outputs, with their sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache, cached_property

import numpy as np
import torch
from recordings import OFFICIAL
from torch import Tensor

from spatialflow.checkpoint.official import convert_state_dict


class Recording:
    """One recording: its manifest entry, and its arrays as tensors by name."""

    def __init__(self, name: str):
        self.manifest = manifests()[name]

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The arrays by name."""
        return np.load(OFFICIAL / self.manifest["file"])

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name]).to(torch.get_default_device())

    @property
    def config(self) -> dict:
        """The settings that the authors' code was run with."""
        return self.manifest["config"]

    def numbered(self, name: str) -> list[Tensor]:
        """The arrays ``name0``, ``name1`` and so on."""
        return list(self._numbered(name))

    def _numbered(self, name: str) -> Iterator[Tensor]:
        i = 0
        while f"{name}{i}" in self.arrays:
            yield self[f"{name}{i}"]
            i += 1

    def state(self, folder: str = "state_dict/", part: str = "") -> dict[str, Tensor]:
        """The weights below ``folder``, ``part`` put before their names."""
        names = [n for n in self.arrays if n.startswith(folder)]
        return {part + n.removeprefix(folder): self[n] for n in names}


@cache
def manifests() -> dict[str, dict]:
    """The entries of all manifests by the name of the recording."""
    entries: dict[str, dict] = {}
    for file in sorted(OFFICIAL.glob("manifest_*.json")):
        entries |= json.loads(file.read_text())
    return entries


@cache
def recording(name: str) -> Recording:
    """One recording by name."""
    return Recording(name)


def is_recorded(name: str) -> bool:
    """Whether the arrays of a recording are there, not only its manifest."""
    return (OFFICIAL / manifests()[name]["file"]).is_file()


def available(*names: str) -> list[str]:
    """Those of the recordings whose arrays are there."""
    return [name for name in names if is_recorded(name)]


def scales_and_ratios() -> tuple[int, int]:
    config = recording("boxes").config
    return config["scales_per_octave"], len(config["ratios_h_over_w"])


def anchor_order() -> list[int]:
    """The number in their order of each anchor in Detectron2's."""
    scales, ratios = scales_and_ratios()
    return [ratio * scales + scale for scale in range(scales) for ratio in range(ratios)]


def label_order(num_labels: int, other: int) -> list[int]:
    """Their number of each of this project's stuff labels."""
    return [other] + [label for label in range(num_labels) if label != other]


def per_anchor(theirs: Tensor) -> Tensor:
    """(N, A * D, H, W) in their order to (N, H * W * A, D) in ours."""
    n, channels, height, width = theirs.shape
    order = anchor_order()
    values = theirs.reshape(n, len(order), channels // len(order), height, width)[:, order]
    return values.permute(0, 3, 4, 1, 2).flatten(1, 3)


def flat_per_anchor(theirs: Tensor) -> Tensor:
    """(N, H * W * A, ...) in their order to the same in ours."""
    order = anchor_order()
    return theirs.unflatten(1, (-1, len(order)))[:, :, order].flatten(1, 2)


def converted(state: dict[str, Tensor], part: str, other: int = 0) -> dict[str, Tensor]:
    """The weights of one part of the model, under the names that they have in it."""
    scales, ratios = scales_and_ratios()
    weights = convert_state_dict(state, other_label=other, num_scales=scales, num_ratios=ratios)
    return {k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)}
