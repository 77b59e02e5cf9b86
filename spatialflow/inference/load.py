"""The model that a config evaluates: one, one with many views, or an ensemble."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import detectron2.model_zoo
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from spatialflow.checkpoint import SafeCheckpointer
from spatialflow.config import class_count_is_unset, load_config
from spatialflow.data import dataset_categories, prepare_datasets
from spatialflow.data.class_counts import plain_name
from spatialflow.model_zoo import get_config_file
from spatialflow.modeling.adapters import as_panoptic_model, configured_class
from spatialflow.modeling.panoptic import Merge
from spatialflow.modeling.panoptic_model import PanopticModel

from .ensemble import EnsembleWithTTA
from .member import ClassNumbers, Member
from .optimized import optimize
from .views import views_from_config

MEMBER_DEFAULTS: dict[str, Any] = {"CONFIG": None, "WEIGHTS": None, "WEIGHT": 1.0, "OPTS": []}
"""Keys of an entry of TEST.ENSEMBLE.MEMBERS; None: it must be given."""
AUTOCAST_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Values of TEST.OPTIMIZE.DTYPE; None: no autocast."""


def load_model(cfg: CfgNode, resume: bool = False) -> PanopticModel:
    """The model or ensemble of a config, with weights, for evaluation.

    Args:
        cfg: a config with class counts, see :func:`spatialflow.data.prepare_datasets`.
        resume: take the last checkpoint of OUTPUT_DIR, if there is one, instead of MODEL.WEIGHTS.

    Raises:
        FileNotFoundError, ValueError: a file is missing or does not fit; in an ensemble, members
            of other classes too.
    """
    if cfg.TEST.ENSEMBLE.MEMBERS:
        return _load_ensemble(cfg)
    model = build_model(cfg)
    checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, complete=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return with_views(cfg, _optimized(cfg, as_panoptic_model(model, cfg))).eval()


def with_views(cfg: CfgNode, model: nn.Module) -> PanopticModel:
    """The model as it is evaluated: with the views of TEST.AUG, if the config has them.

    Args:
        cfg: the config that the model was built from.
        model: any model that :func:`spatialflow.modeling.as_panoptic_model` takes.
    """
    model = as_panoptic_model(model, cfg)
    if not cfg.TEST.AUG.ENABLED or isinstance(model, EnsembleWithTTA):
        return model
    member = Member(model, views_from_config(cfg), cfg.INPUT.FORMAT)
    return _ensemble(cfg, [member], model.nms_thresh, model.merge).train(model.training)


def _optimized(cfg: CfgNode, model: PanopticModel) -> PanopticModel:
    """What TEST.OPTIMIZE makes of a model; ValueError for an unknown data type."""
    if not cfg.TEST.OPTIMIZE.ENABLED:
        return model
    name = cfg.TEST.OPTIMIZE.DTYPE
    if name not in AUTOCAST_DTYPES:
        raise ValueError(f"TEST.OPTIMIZE.DTYPE is one of {list(AUTOCAST_DTYPES)}, not {name!r}.")
    return optimize(model, dtype=AUTOCAST_DTYPES[name], compile=cfg.TEST.OPTIMIZE.COMPILE)


def _ensemble(
    cfg: CfgNode, members: Sequence[Member], nms_thresh: float, merge: Merge | None
) -> EnsembleWithTTA:
    return EnsembleWithTTA(
        members,
        input_format=cfg.INPUT.FORMAT,
        nms_thresh=nms_thresh,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        merge=merge,
        device=cfg.MODEL.DEVICE,
        one_at_a_time=cfg.TEST.ENSEMBLE.ONE_AT_A_TIME,
    )


def _load_ensemble(cfg: CfgNode) -> EnsembleWithTTA:
    members = [_load_member(cfg, _parse_member(entry)) for entry in cfg.TEST.ENSEMBLE.MEMBERS]
    formats = {member.input_format for member in members}
    if cfg.INPUT.FORMAT not in ("BGR", "RGB") or formats - {"BGR", "RGB"}:
        raise ValueError("The INPUT.FORMAT of an ensemble and of its members is BGR or RGB.")
    merge = configured_class(cfg).build_merge(cfg)
    return _ensemble(cfg, members, cfg.TEST.ENSEMBLE.NMS_THRESH, merge).eval()


def _parse_member(entry: Any) -> dict[str, Any]:
    required = [key for key, default in MEMBER_DEFAULTS.items() if default is None]
    given = set(entry) if isinstance(entry, Mapping) else set()
    if not set(required) <= given <= set(MEMBER_DEFAULTS):
        raise ValueError(
            f"TEST.ENSEMBLE.MEMBERS: {entry!r} is no member. It has {' and '.join(required)} and, "
            "if wanted, WEIGHT (a number) and OPTS (a list KEY, VALUE, ...)."
        )
    return {**MEMBER_DEFAULTS, **entry}


def _load_member(cfg: CfgNode, entry: Mapping[str, Any]) -> Member:
    name = entry["CONFIG"]
    own = load_config(find_config(name), entry["OPTS"])
    own.MODEL.DEVICE = "cpu" if cfg.TEST.ENSEMBLE.ONE_AT_A_TIME else cfg.MODEL.DEVICE
    class_names = _prepare_classes(own)
    model = build_model(own).eval()
    SafeCheckpointer(model, complete=True).load(entry["WEIGHTS"])
    model = _optimized(own, as_panoptic_model(model, own))
    if cfg.TEST.AUG.ENABLED:
        own.TEST.AUG = cfg.TEST.AUG
    return Member(
        model,
        views_from_config(own),
        own.INPUT.FORMAT,
        weight=entry["WEIGHT"],
        numbers=_match_classes(cfg, name, class_names, model.predicts_stuff),
    )


def find_config(name: str) -> str:
    """A file, or a name in this project's model zoo or in Detectron2's."""
    if os.path.isfile(name):
        return name
    try:
        return detectron2.model_zoo.get_config_file(name)
    except RuntimeError:  # not one of Detectron2's; ours says what it could have been
        return get_config_file(name)


def _prepare_classes(cfg: CfgNode) -> dict[str, list[str]]:
    """Names of the things and stuff of a member's dataset; sets its class counts.

    Beside panoptic datasets Detectron2's COCO instance datasets are understood.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST of a member's config names the dataset of its classes.")
    name = cfg.DATASETS.TEST[0]
    if name in DatasetCatalog and MetadataCatalog.get(name).get("evaluator_type") == "coco":
        things = list(MetadataCatalog.get(name).thing_classes)
        if class_count_is_unset(cfg, "MODEL.ROI_HEADS.NUM_CLASSES"):
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(things)
        return {"things": things, "stuff": []}
    prepare_datasets(cfg, ("TEST",), check_files=False)
    categories = dataset_categories(name)
    return {kind: [c.name for c in getattr(categories, kind)] for kind in ("things", "stuff")}


def _match_classes(
    cfg: CfgNode, member: str, class_names: Mapping[str, list[str]], predicts_stuff: bool
) -> ClassNumbers | None:
    """How a member numbers the classes of the config's dataset.

    Raises:
        ValueError: the classes are not the same.
    """
    answer = dataset_categories(cfg.DATASETS.TEST[0])
    numbers: dict[str, list[int]] = {"things": [], "stuff": []}
    for kind in ("things", "stuff") if predicts_stuff else ("things",):
        wanted = [plain_name(c.name) for c in getattr(answer, kind)]
        own = [plain_name(name) for name in class_names[kind]]
        lacks, has_too = sorted(set(wanted) - set(own)), sorted(set(own) - set(wanted))
        if lacks or has_too:
            raise ValueError(
                f"Ensemble member {member} has other {kind} than {cfg.DATASETS.TEST[0]}: it lacks "
                f"{lacks}, and has {has_too}. Members are trained on the same classes."
            )
        numbers[kind] = [own.index(name) for name in wanted]
    in_order = all(n == list(range(len(n))) for n in numbers.values())
    return None if in_order else ClassNumbers(**numbers)
