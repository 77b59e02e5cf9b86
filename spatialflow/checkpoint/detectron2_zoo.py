"""SpatialFlow from checkpoints of Detectron2's model zoo, by renaming.

With flows that give zero, SpatialFlow's cls and reg sub-networks are those of Detectron2's
RetinaNet, on the same backbone and anchors: a RetinaNet checkpoint fits as it is. The mask head and
the stuff head have the layers of Detectron2's Panoptic FPN.

Logits, deltas and anchors are equal then. What is made of them differs a little: SpatialFlow keeps
the best 1000 anchors of a level with all their classes (RetinaNet: 1000 pairs of anchor and class),
decodes no box smaller than 0.016 of its anchor, and suppresses at an IoU of 0.4 instead of 0.5.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import detectron2.model_zoo
import torch
from detectron2.config import get_cfg
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor, nn

from spatialflow.modeling import SpatialFlow
from spatialflow.modeling.flows import Flow
from spatialflow.modeling.subnets import DeformableStage
from spatialflow.utils.text import name_some

RETINANET, PANOPTIC_FPN = "RetinaNet", "Panoptic FPN"
HEADS_KEY = "MODEL.SPATIALFLOW.HEADS_WEIGHTS"
ZOO_RETINANET = "COCO-Detection/retinanet_R_50_FPN_3x.yaml"

_FAMILIES = {
    RETINANET: ("head.cls_subnet.", "head.bbox_subnet."),
    PANOPTIC_FPN: ("sem_seg_head.", "roi_heads.mask_head."),
    "Keypoint R-CNN": ("roi_heads.keypoint_head.",),
    "Mask R-CNN": ("roi_heads.mask_head.",),
    "Faster R-CNN": ("roi_heads.",),
    "RPN": ("proposal_generator.",),
    "Semantic FPN": ("sem_seg_head.",),
}
"""Prefixes that the names of the parameters of each have; the first that fits counts."""

_BUFFERS = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors.")
"""Settings that Detectron2 used to save with the parameters."""

_STRIDES = (8, 16, 32, 64, 128)
"""Of P3 to P7. The zoo's anchors have 4 strides times 2^0, 2^(1/3), 2^(2/3)."""

logger = logging.getLogger(__name__)


def find_family(names: Iterable[str]) -> str | None:
    """Which model of Detectron2's zoo has parameters of these names; None for any other model."""
    names = list(names)
    for family, prefixes in _FAMILIES.items():
        if all(any(name.startswith(prefix) for name in names) for prefix in prefixes):
            return family
    return None


@functools.singledispatch
def convert_zoo_model(
    model: nn.Module, state: Mapping[str, Any], source: str
) -> dict[str, Any] | None:
    """Rename the tensors of a model of Detectron2's zoo that another model can start from.

    Args:
        model: what they are for; a class of models that can start so registers its function.
        state: tensors or arrays by their names in any checkpoint.
        source: the checkpoint, for messages.

    Returns:
        Tensors by the names of ``model``; None if they are to be loaded as they are.
    """
    return None


@convert_zoo_model.register
def convert_retinanet(
    model: SpatialFlow, state: Mapping[str, Any], source: str
) -> dict[str, Any] | None:
    """Rename the tensors of a RetinaNet of Detectron2 to those of SpatialFlow.

    Logs a warning where the model, as it is now, makes other boxes than the zoo's RetinaNet.

    Args:
        model, state, source: see :func:`convert_zoo_model`.

    Returns:
        All tensors by the names of ``model``; None for a checkpoint of none of Detectron2's models.

    Raises:
        ValueError: the checkpoint is of another model of Detectron2, or its tensors are not exactly
            those of the model's backbone, cls and reg sub-networks and their heads.
    """
    family = find_family(state)
    if family is None:
        return None
    if family != RETINANET:
        raise ValueError(
            f"{source} is a checkpoint of Detectron2's {family}, from which SpatialFlow cannot "
            "start: set MODEL.WEIGHTS to a RetinaNet of Detectron2's model zoo, such as "
            f"{zoo_url(ZOO_RETINANET)}, or to a backbone. The mask head and the stuff head of a "
            f"Panoptic FPN are taken by {HEADS_KEY}."
        )
    buffers = {name: value for name, value in state.items() if name.startswith(_BUFFERS)}
    weights = {_rename_retinanet(k): v for k, v in state.items() if k not in buffers}
    wanted = [name for name in model.state_dict() if _is_of_retinanet(name)]
    _check_names(weights, wanted, f"{source} is a RetinaNet that does not fit the config's model")
    if differences := _differences(model, buffers):
        logger.warning(
            "%s: before training, the boxes are not those of Detectron2's RetinaNet: %s.",
            source,
            "; ".join(differences),
        )
    return weights


@functools.singledispatch
def convert_heads(model: nn.Module, state: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Rename the heads of a Panoptic FPN of Detectron2's zoo, for models that can take them.

    Args:
        model, state, source: see :func:`convert_zoo_model`.

    Raises:
        ValueError: the model cannot.
    """
    raise ValueError(
        f"{HEADS_KEY} is {source}, but a {type(model).__name__} does not take heads. Leave the key "
        "empty."
    )


@convert_heads.register
def convert_panoptic_fpn_heads(
    model: SpatialFlow, state: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Rename the mask head and the stuff head of a Panoptic FPN of Detectron2.

    Args:
        model: what they are for; a branch that it does not have is left out.
        state: tensors or arrays by their names in the checkpoint.
        source: the checkpoint, for messages.

    Returns:
        The tensors of the heads by the names of ``model``. What is not taken is logged.

    Raises:
        ValueError: no checkpoint of a Panoptic FPN, or its heads have other layers.
    """
    family = find_family(state)
    if family != PANOPTIC_FPN:
        what = f"of Detectron2's {family}" if family else "of another model"
        raise ValueError(
            f"{HEADS_KEY} takes a checkpoint of Detectron2's Panoptic FPN; {source} is one {what}."
        )
    heads = ("thing_head.mask_head.", "stuff_head.")
    wanted = [name for name in model.state_dict() if name.startswith(heads)]
    branches = {name.partition(".")[0] for name in wanted}
    weights, left = {}, []
    for key, value in state.items():
        name = re.sub(r"^roi_heads\.mask_head\.", heads[0], key)
        name = re.sub(r"^sem_seg_head\.", heads[1], name)
        # SpatialFlow's stuff head begins at P3.
        if name.partition(".")[0] in branches and not name.startswith("stuff_head.p2."):
            weights[name] = value
        else:
            left.append(key)
    _check_names(weights, wanted, f"The heads of {source} do not fit the config's model")
    parts = sorted({".".join(key.split(".")[:2]) for key in left})
    logger.info(
        "%s: the %d tensors of %s are taken; the %d of %s are not.",
        source,
        len(weights),
        " and ".join(sorted(branches)),
        len(left),
        ", ".join(parts),
    )
    return weights


def zoo_url(config_path: str) -> str:
    """``detectron2://`` and the rest, of the weights of a config of Detectron2's model zoo."""
    prefix = "https://dl.fbaipublicfiles.com/detectron2/"
    return detectron2.model_zoo.get_checkpoint_url(config_path).replace(prefix, "detectron2://")


def _rename_retinanet(key: str) -> str:
    """SpatialFlow's name; a name that RetinaNet does not have stays as it is."""
    found = re.fullmatch(r"head\.(cls|bbox)_subnet\.([0246])\.(weight|bias)", key)
    if found:  # a ReLU stands between two convolutions
        task, index, kind = found.groups()
        return f"subnets.{'reg' if task == 'bbox' else task}.{int(index) // 2}.conv.{kind}"
    return re.sub(r"^head\.(cls_score|bbox_pred)\.", r"detector.\1.", key)


def _is_of_retinanet(name: str) -> bool:
    own = name.startswith(("backbone.", "subnets.cls.", "subnets.reg.", "detector."))
    return own and ".flows." not in name and not name.endswith(".num_batches_tracked")


def _check_names(given: Mapping[str, Any], wanted: Iterable[str], problem: str) -> None:
    """Check that weights have the wanted names and no others, but for counters of batch norm."""
    names = {name for name in given if not name.endswith(".num_batches_tracked")}
    wanted = set(wanted)
    problems = [
        f"{what} {name_some(sorted(different))}"
        for what, different in (
            ("the model has no", names - wanted),
            ("the file has no", wanted - names),
        )
        if different
    ]
    if problems:
        raise ValueError(
            f"{problem}: {'; '.join(problems)}. Use a config with the checkpoint's "
            "MODEL.RESNETS.DEPTH, norms, number of convolutions and deformable layers, or another "
            "checkpoint."
        )


def _differences(model: SpatialFlow, buffers: Mapping[str, Any]) -> list[str]:
    """Why the model, with the weights of the zoo's RetinaNet, is another detector than it.

    Args:
        model: has the names of RetinaNet.
        buffers: settings in the checkpoint, which count more than those of the zoo.
    """
    found = []
    detection = {name: getattr(model.subnets, name) for name in ("cls", "reg")}
    for name, stages in detection.items():
        if any(isinstance(stage, DeformableStage) for stage in stages):
            found.append(f"MODEL.SPATIALFLOW.DEFORM_ON has {name}")
        flows = [flow for flow in stages.modules() if isinstance(flow, Flow)]
        if not all(_gives_zero(flow, model.device) for flow in flows):
            found.append(f"the flows into {name} are not zero (MODEL.SPATIALFLOW.FLOW_INIT zero)")
    if not getattr(getattr(model.backbone, "top_block", None), "relu", True):
        found.append("MODEL.SPATIALFLOW.P7_RELU is False")
    res3 = getattr(getattr(model.backbone, "bottom_up", None), "res3", None)
    if res3 is not None and res3[0].conv1.stride != (2, 2):
        found.append("MODEL.RESNETS.STRIDE_IN_1X1 is False")
    theirs = {**_zoo_buffers(), **buffers}
    for key, name in (("PIXEL_MEAN", "pixel_mean"), ("PIXEL_STD", "pixel_std")):
        if not _close(getattr(model, name), theirs[name]):
            found.append(f"MODEL.{key} is another")
    anchors = enumerate(model.detector.anchor_generator.cell_anchors)
    if not all(_close(a, theirs[f"anchor_generator.cell_anchors.{i}"]) for i, a in anchors):
        found.append("MODEL.ANCHOR_GENERATOR is another")
    return found


@torch.no_grad()
def _gives_zero(flow: Flow, device: torch.device) -> bool:
    feature = torch.ones(1, flow.channels, 3, 3, device=device)
    return not flow(feature, feature).any()


def _zoo_buffers() -> dict[str, Tensor]:
    """Mean, deviation and anchors of the zoo's RetinaNets; all but the sizes are Detectron2's."""
    cfg = get_cfg()
    anchors = DefaultAnchorGenerator(
        sizes=[[4 * stride * 2 ** (i / 3) for i in range(3)] for stride in _STRIDES],
        aspect_ratios=cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
        strides=_STRIDES,
    )
    buffers = {
        f"anchor_generator.cell_anchors.{i}": cell for i, cell in enumerate(anchors.cell_anchors)
    }
    mean, std = torch.tensor(cfg.MODEL.PIXEL_MEAN), torch.tensor(cfg.MODEL.PIXEL_STD)
    return {**buffers, "pixel_mean": mean, "pixel_std": std}


def _close(ours: Tensor, theirs: Any) -> bool:
    ours, theirs = ours.cpu().flatten(), torch.as_tensor(theirs).float().flatten()
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4)
