"""Random weights that give every model the same work after its dense step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from spatialflow.modeling.panoptic_model import ClassLogits, PanopticModel

from . import subjects

CONFIDENT = range(15, 31)
"""How many of the detections may pass the score threshold of the merge."""

SCALES = (4, 2.8, 2, 1.4, 1, 0.7, 0.5, 0.35, 0.25)
"""The spreads of the logits that are tried."""

Detect = Callable[[float, float], Instances]
"""Detections by the scale and the shift of the class logits."""


@torch.no_grad()
def calibrate(model: PanopticModel, image: dict) -> dict[str, float]:
    """Set the layer of the class scores so that models give the same work on an image.

    Of the random layer only the scale changes, and the bias of the thing classes. Where the random
    masks or boxes of a model are too much alike for the NMS to leave enough of them, its threshold
    becomes 1, which costs as much and leaves all. A model that does not say which layer it is stays
    as it is.

    Returns:
        How many ``detections`` there are, how many of them are ``confident``, and ``box_share``,
        the mean area of their boxes as a share of the image.

    Raises:
        RuntimeError: no weights were found; the image is too small.
    """
    threshold = getattr(model.merge, "score_thresh", 0.0)
    logits = model.class_logits()
    if logits is not None:
        _set_layer(model, logits, image, threshold)
    instances = model([image])[0].get("instances", [])
    found = {"detections": len(instances), "confident": 0, "box_share": 0.0}
    if len(instances):
        height, width = instances.image_size
        found["confident"] = _confident(instances, threshold)
        found["box_share"] = float(instances.pred_boxes.area().mean() / (height * width))
    wanted = found["detections"] == subjects.DETECTIONS and found["confident"] in CONFIDENT
    if logits is not None and not wanted:
        name = type(model).__name__
        raise RuntimeError(f"{name} has {found} on an image of {tuple(image['image'].shape)}.")
    return found


def _set_layer(model: PanopticModel, logits: ClassLogits, image: dict, threshold: float) -> None:
    weight, bias = logits.layer.weight, logits.layer.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    images = model.preprocess_image([image])
    sizes = images.image_sizes
    nn.init.zeros_(bias)
    with replayed(model, logits.layer) as replay:

        def detections(scale: float, shift: float) -> Instances:
            replay.change = lambda x: x * scale + shift * _things(x, logits)
            replay.rewind()
            dense = model.dense(images.tensor)
            return model.select(model.find_candidates(dense, sizes, sizes)[0])

        detections(1.0, 0.0)  # records
        spread = torch.cat([x.flatten() for x in replay.recorded]).std().item()
        if len(detections(SCALES[0] / spread / logits.share, 0.0)) < subjects.DETECTIONS:
            model.nms_thresh = 1.0
        scale, shift = _search(detections, threshold, spread, logits.share)
    weight.mul_(scale)
    bias.add_(shift * _things(bias, logits))


def _things(x: Tensor, logits: ClassLogits) -> Tensor:
    """1 for the logits of things, 0 for the background's, which is the last column."""
    ones = torch.ones_like(x)
    if logits.has_background:
        ones[..., -1] = 0
    return ones


class Replay:
    """What the modules returned in the first pass, given again in every later one.

    Attributes:
        change: applied to what the layer in question returned.
        recorded: its result.
    """

    def __init__(self) -> None:
        self.change: Callable[[Tensor], Tensor] = lambda x: x
        self.recorded: list[Tensor] = []
        self._outputs: dict[nn.Module, list[Any]] = {}
        self._calls: dict[nn.Module, int] = {}

    def rewind(self) -> None:
        """Begin a pass."""
        self._calls.clear()

    def forward(self, module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        """A ``forward`` of the module that runs it only once for each of its calls in a pass."""

        def replaying(*args: Any, **kwargs: Any) -> Any:
            outputs = self._outputs.setdefault(module, [])
            index = self._calls.get(module, 0)
            self._calls[module] = index + 1
            if index == len(outputs):
                outputs.append(run(*args, **kwargs))
            return outputs[index]

        return replaying

    def layer_forward(self, module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        """As :meth:`forward`, with :attr:`change` applied."""
        replaying = self.forward(module, run)
        self.recorded = self._outputs.setdefault(module, [])
        return lambda *args, **kwargs: self.change(replaying(*args, **kwargs))


@contextmanager
def replayed(model: nn.Module, layer: nn.Module) -> Iterator[Replay]:
    """While it lasts every module that does not hold the layer runs only in the first pass."""
    replay = Replay()
    holders = {m for m in model.modules() if any(x is layer for x in m.modules())} - {layer}
    with ExitStack() as stack:
        for holder in holders:
            for child in holder.children():
                if child is layer:
                    forward = replay.layer_forward(child, child.forward)
                elif child not in holders:
                    forward = replay.forward(child, child.forward)
                else:
                    continue
                stack.enter_context(patch.object(child, "forward", forward))
        yield replay


def _search(
    detections: Detect, threshold: float, spread: float, share: float
) -> tuple[float, float]:
    """The scale and the shift of the layer's outputs."""
    middle = (CONFIDENT.start + CONFIDENT.stop) // 2
    for scale in (x / spread / share for x in SCALES):
        low, high = -60.0 / share, 60.0 / share
        while high - low > 1e-3:
            shift = (low + high) / 2
            found = detections(scale, shift)
            confident = _confident(found, threshold)
            if len(found) == subjects.DETECTIONS and confident in CONFIDENT:
                return scale, shift
            low, high = (low, shift) if confident > middle else (shift, high)
    raise RuntimeError("No weights give the wanted detections: the image is too small.")


def _confident(instances: Instances, threshold: float) -> int:
    return int((instances.scores >= threshold).sum())
