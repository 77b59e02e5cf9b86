"""The steps of a model between image and panoptic map, to be timed one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spatialflow.modeling.panoptic_model import PanopticModel

Step = Callable[[], Any]


@torch.no_grad()
def steps_of(model: PanopticModel, image: dict) -> dict[str, Step]:
    """Each step of :class:`PanopticModel` on an image, its dense step in parts, as a call.

    The calls take what the steps before them gave when this function ran, so they can be repeated
    in any order.

    Args:
        model: a model in evaluation mode.
        image: the model's input of one image.
    """
    images = model.preprocess_image([image])
    sizes = images.image_sizes
    parts, dense = _dense_parts(model, images.tensor)
    steps: dict[str, Step] = {"preprocess": partial(model.preprocess_image, [image])}
    steps |= parts
    instances: Any = None
    scores: Any = None
    if model.predicts_boxes:
        steps["candidates"] = partial(model.find_candidates, dense, sizes, sizes)
        (candidates,) = steps["candidates"]()
        steps["selection, NMS"] = partial(model.select, candidates)
        instances = steps["selection, NMS"]()
    if model.predicts_masks:
        features = model.mask_features(dense)
        steps["masks"] = partial(model.predict_masks, features, [instances], sizes)
        model.attach_masks(instances, steps["masks"]()[0])
    if model.predicts_stuff:
        steps["stuff at its size"] = partial(model.stuff_scores, dense, sizes, sizes)
        (scores,) = steps["stuff at its size"]()
    if model.merge is not None:
        steps["pasting, merge"] = partial(model.merge, instances, scores)
    return {name: torch.no_grad()(step) for name, step in steps.items()}


def _dense_parts(model: PanopticModel, images: Tensor) -> tuple[dict[str, Step], Any]:
    """The calls of the model's modules within :meth:`PanopticModel.dense`, and what it returned."""
    parts: dict[str, Step] = {}
    hooks = [
        module.register_forward_pre_hook(partial(_record, parts, name), with_kwargs=True)
        for name, module in _parts(model)
    ]
    try:
        dense = model.dense(images)
    finally:
        for hook in hooks:
            hook.remove()
    return parts, dense


def _record(parts: dict[str, Step], name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    parts[name] = partial(module, *args, **kwargs)


def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that a model is made of; those of the model in an adapter."""
    children = list(model.named_children())
    return _parts(children[0][1]) if len(children) == 1 else children
