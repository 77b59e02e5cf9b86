"""Batch norms folded into the convolutions before them, for inference only."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from spatialflow.modeling.timm_backbone import TimmBackbone


def fold_batch_norms(module: nn.Module) -> None:
    """Fold batch norms, frozen or with running statistics, into their convolutions.

    These are Detectron2's convolutions, which hold their norm, and those in backbones of timm.

    Args:
        module: changed in place, in evaluation mode where it has a backbone of timm.
    """
    for part in list(module.modules()):
        norm = getattr(part, "norm", None)
        if isinstance(part, Conv2d) and isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            _fold(part, norm)
            part.norm = None
        elif isinstance(part, TimmBackbone):
            fold_timm_backbone(part)


def fold_timm_backbone(backbone: TimmBackbone) -> None:
    """Fold the batch norms of a timm model, and make its parallel branches one convolution.

    timm's batch norms stand beside their convolutions and may hold the activation, which stays.
    Which convolution a norm follows is seen in a run: its input is the very output of that
    convolution, which nothing else reads.

    Args:
        backbone: changed in place.
    """
    from timm.utils.model import reparameterize_model  # there, as the backbone is timm's

    backbone.eval()
    backbone.model = reparameterize_model(backbone.model, inplace=True)
    names = {module: name for name, module in backbone.named_modules()}
    for conv, norm in _pairs(backbone):
        _fold(conv, norm)
        parent, _, child = names[norm].rpartition(".")
        activation = getattr(norm, "act", None) or nn.Identity()
        setattr(backbone.get_submodule(parent), child, activation)


def _fold(conv: Any, norm: Any) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


class _Watch:
    """Which convolutions and batch norms of a module ran on what, in one forward pass.

    Attributes:
        outputs: each convolution's output; they are kept, so that no two have one id.
        inputs: each batch norm's input.
        calls: how often each of them ran.
    """

    def __init__(self) -> None:
        self.outputs: dict[nn.Module, Tensor] = {}
        self.inputs: dict[nn.Module, Tensor] = {}
        self.calls: Counter[nn.Module] = Counter()

    def conv(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.calls[module] += 1
        self.outputs[module] = output

    def norm(self, module: nn.Module, args: Any) -> None:
        self.calls[module] += 1
        self.inputs[module] = args[0]


def _pairs(backbone: TimmBackbone) -> list[tuple[nn.Module, nn.Module]]:
    """Convolutions and the batch norms that alone read their outputs."""
    from timm.layers import Conv2dSame

    watch, handles = _Watch(), []
    for module in backbone.modules():
        if type(module) in (nn.Conv2d, Conv2dSame):
            handles.append(module.register_forward_hook(watch.conv))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(watch.norm))
    device = next(backbone.parameters()).device
    image = torch.zeros(1, 3, 64, 64, device=device, requires_grad=True)
    with torch.enable_grad():
        features = backbone(image)
    for handle in handles:
        handle.remove()
    readers = _count_readers(features)
    made_by = {id(output): conv for conv, output in watch.outputs.items()}
    return [
        (made_by[id(x)], norm)
        for norm, x in watch.inputs.items()
        if id(x) in made_by
        and watch.calls[made_by[id(x)]] == watch.calls[norm] == 1
        and readers[x.grad_fn] == 1
    ]


def _count_readers(features: dict[str, Tensor]) -> Counter[Any]:
    """How many operations read the result of each, by the nodes of the autograd graph."""
    counts: Counter[Any] = Counter()
    seen: set[Any] = set()
    queue = [feature.grad_fn for feature in features.values()]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        children = [child for child, _ in node.next_functions]
        counts.update(children)
        queue += children
    return counts
