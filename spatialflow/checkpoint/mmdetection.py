"""What checkpoints of mmdetection have in common: names by rules, its ResNet, and how they fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from .torchvision_weights import PREFIX
from .torchvision_weights import rename as rename_resnet

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Patterns of the beginning of their names, and what stands there in this project's."""


def plus(number: int, template: str) -> Callable[[re.Match[str]], str]:
    """A replacement for ``re.sub``: ``template`` with the first group, an integer, increased."""
    return lambda match: match.expand(template).replace("#", str(int(match[1]) + number))


def rename_by(rules: Rules, key: str) -> str | None:
    """This project's name of one of their tensors; None for a name that they do not have."""
    if key.startswith("backbone."):
        name = PREFIX + rename_resnet(key.removeprefix("backbone."))
        return name.replace(".conv2.conv_offset.", ".conv2_offset.")
    for pattern, replacement in rules:
        name, found = re.subn(f"^{pattern}", replacement, key)
        if found:
            return name
    return None


def renamed(
    state: Mapping[str, Tensor], rename: Callable[[str], str | None], model: str, hint: str = ""
) -> dict[str, str]:
    """This project's names by theirs; counters of batch norm are left out.

    Args:
        state: their tensors by their names.
        rename: gives a name, or None.
        model: whose checkpoint it should be, for the message.
        hint: ends the message.

    Raises:
        ValueError: names that they do not have.
    """
    names = {key: rename(key) for key in state if not key.endswith(".num_batches_tracked")}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        raise ValueError(f"Not a checkpoint of {model}: it has {', '.join(sorted(unknown))}.{hint}")
    return {key: str(name) for key, name in names.items()}


def check_fit(weights: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> None:
    """Check that weights fill a model: no tensor too many, none too few, every shape right.

    Args:
        weights: converted, by this project's names.
        model_state: the model's state dict; only shapes are looked at.

    Raises:
        ValueError: names every tensor that does not fit.
    """
    needed = {k for k in model_state if not k.endswith(".num_batches_tracked")}
    problems = [f"{key}: not in the weights" for key in sorted(needed - weights.keys())]
    problems += [f"{key}: not in the model" for key in sorted(weights.keys() - needed)]
    problems += [
        f"{key}: {_size(weights[key])} in the weights, {_size(model_state[key])} in the model"
        for key in sorted(needed & weights.keys())
        if weights[key].shape != model_state[key].shape
    ]
    if problems:
        raise ValueError(
            "The weights do not fit the config's model. Is it the config of these weights? "
            "Names are this project's:\n  " + "\n  ".join(problems)
        )


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"
