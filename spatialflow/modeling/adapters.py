"""Models that exist elsewhere as panoptic models: which adapter a class of models has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from .panoptic_model import PanopticModel

Adapter = TypeVar("Adapter", bound=type[PanopticModel])
_ADAPTERS: dict[type[nn.Module], type[PanopticModel]] = {}


def register_adapter(model_class: type[nn.Module]) -> Callable[[Adapter], Adapter]:
    """Decorate the :class:`PanopticModel` that wraps models of another class.

    Its constructor takes the model and the config the model was built from.
    """

    def register(adapter: Adapter) -> Adapter:
        _ADAPTERS[model_class] = adapter
        return adapter

    return register


def as_panoptic_model(model: nn.Module, cfg: CfgNode) -> PanopticModel:
    """A model as the rest of the project uses it: itself, or in its adapter.

    Args:
        model: a PanopticModel, a model of a class with an adapter, or such a model in torch's
            DistributedDataParallel.
        cfg: the config that the model was built from.

    Raises:
        ValueError: the model's class has no adapter.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if isinstance(model, PanopticModel):
        return model
    return panoptic_class(type(model))(model, cfg).train(model.training)


def panoptic_class(model_class: type) -> type[PanopticModel]:
    """The class itself, or the adapter of a class of models; see :func:`as_panoptic_model`."""
    for base in model_class.__mro__:
        if issubclass(base, PanopticModel):
            return model_class
        if base in _ADAPTERS:
            return _ADAPTERS[base]
    known = ", ".join(sorted(c.__name__ for c in _ADAPTERS))
    raise ValueError(
        f"{model_class.__name__} is not a panoptic model of this project: derive it from "
        "spatialflow.modeling.PanopticModel, or register an adapter for it "
        f"(spatialflow.modeling.register_adapter). Adapters exist for {known}."
    )


def configured_class(cfg: CfgNode) -> type[PanopticModel]:
    """The class of the models that MODEL.META_ARCHITECTURE names, or its adapter."""
    return panoptic_class(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE))
