"""Weights in half precision: half the file, for what is only evaluated."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from spatialflow.utils.text import name_some


def halve(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with float32 ones as float16; integers stay.

    A model in float32 that loads them converts them back.

    Raises:
        ValueError: a value is beyond float16, 65504; the message names the tensors.
    """
    halved = {k: v.half() if v.dtype == torch.float32 else v for k, v in state.items()}
    beyond = [k for k, v in halved.items() if not v.isfinite().all()]
    if beyond:
        raise ValueError(f"Half precision cannot hold {name_some(beyond)}: beyond 65504.")
    return halved
