"""The masks of detections, brought to the size of the image when somebody looks at them.

The panoptic map needs full-resolution masks of the few detections that pass its threshold, mask AP
of all, and many uses of none.

Legend: N detections, M the side of a predicted mask, H x W the size of the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.layers import paste_masks_in_image
from torch import Tensor


class PastedMasks:
    """(N, H, W) bool masks that are pasted when they are needed.

    For Detectron2's ``Instances``, evaluators and visualizer, and for torch and numpy, it is the
    tensor; indexing it by a slice or a tensor pastes nothing yet.

    Args:
        probabilities: (N, M, M).
        boxes: (N, 4), x1 y1 x2 y2 in pixels of the output.
        size: (H, W).
        threshold: a pixel with at least this probability belongs to the mask.
    """

    def __init__(
        self,
        probabilities: Tensor,
        boxes: Tensor,
        size: tuple[int, int],
        threshold: float = 0.5,
    ):
        self.probabilities = probabilities
        self.boxes = boxes.clone()  # whoever has the boxes may change them
        self.size = size
        self.threshold = threshold

    @cached_property
    def tensor(self) -> Tensor:
        """The masks themselves, (N, H, W) bool."""
        if len(self) == 0:
            device = self.probabilities.device
            return torch.zeros((0, *self.size), dtype=torch.bool, device=device)
        return paste_masks_in_image(self.probabilities, self.boxes, self.size, self.threshold)

    def to(self, *args: Any, **kwargs: Any) -> PastedMasks | Tensor:
        """On another device; as a tensor when another type is asked for."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None:
            return self.tensor.to(*args, **kwargs)
        moved = (x.to(device) for x in (self.probabilities, self.boxes))
        return PastedMasks(*moved, self.size, self.threshold)

    def cpu(self) -> PastedMasks:
        """On the CPU."""
        return self.to("cpu")

    def __len__(self) -> int:
        return len(self.probabilities)

    def __getitem__(self, item: Any) -> PastedMasks | Tensor:
        """One mask (H, W) by an integer, some of the masks by a slice or a tensor."""
        if isinstance(item, tuple):
            return self.tensor[item]
        if np.ndim(item) == 0 and not isinstance(item, slice):
            return self[[int(item)]].tensor[0]
        return PastedMasks(self.probabilities[item], self.boxes[item], self.size, self.threshold)

    def __iter__(self) -> Iterator[Tensor]:
        """The masks (H, W), one after another: there need not be memory for all at once."""
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.tensor.cpu().numpy()
        return array if dtype is None else array.astype(dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor, name)

    def __reduce__(self) -> tuple:
        return PastedMasks, (self.probabilities, self.boxes, self.size, self.threshold)

    def __and__(self, other: Any) -> Tensor:
        return self.tensor & other

    def __or__(self, other: Any) -> Tensor:
        return self.tensor | other

    def __xor__(self, other: Any) -> Tensor:
        return self.tensor ^ other

    def __eq__(self, other: Any) -> Tensor:
        return self.tensor == other

    def __ne__(self, other: Any) -> Tensor:
        return self.tensor != other

    __hash__ = None

    def __invert__(self) -> Tensor:
        return ~self.tensor

    def __repr__(self) -> str:
        return f"PastedMasks({len(self)} masks of {self.size[0]}x{self.size[1]})"

    @classmethod
    def cat(cls, parts: list[PastedMasks]) -> PastedMasks:
        """Masks of one size, one after the other."""
        probabilities, boxes = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("probabilities", "boxes")
        )
        return cls(probabilities, boxes, parts[0].size, parts[0].threshold)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None) -> Any:
        return function(*map(_as_tensor, args), **(kwargs or {}))


def _as_tensor(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_as_tensor, value))
    return value.tensor if isinstance(value, PastedMasks) else value
