"""Which layers depend on the classes, and training them alone."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from small_rcnn import KINDS, rcnn_config

from spatialflow.model_zoo import get_config
from spatialflow.modeling.class_layers import class_layers_of, train_only_class_layers


def toy_config(num_things: int, num_stuff: int):
    cfg = get_config("toy/spatialflow_toy.yaml")
    cfg.MODEL.RETINANET.NUM_CLASSES = num_things
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_stuff
    cfg.MODEL.DEVICE = "cpu"
    return cfg


CONFIGS = {
    "SpatialFlow": toy_config,
    **{
        name: lambda things, stuff, kind=kind: rcnn_config(**kind, things=things, stuff=stuff)
        for name, kind in KINDS.items()
    },
}
"""Functions from the numbers of things and stuff to a config, by model."""


@pytest.mark.parametrize("counts", [(5, 4), (3, 9), (5, 9)])
@pytest.mark.parametrize("config_of", CONFIGS.values(), ids=CONFIGS)
def test_class_layers_are_those_whose_shape_follows_the_class_counts(config_of, counts):
    cfg = config_of(3, 4)
    class_layers = class_layers_of(cfg)
    few, other = (build_model(c).state_dict() for c in (cfg, config_of(*counts)))
    assert few.keys() == other.keys()
    differ = {name for name in few if few[name].shape != other[name].shape}
    assert all(name.startswith(class_layers) for name in differ)
    if counts == (5, 9):
        one_box = "bbox_pred" if cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG else None
        rest = {name for name in few if name.startswith(class_layers)} - differ
        assert differ and all(one_box is not None and one_box in name for name in rest)


def test_training_class_layers_alone_leaves_batch_statistics_too():
    cfg = toy_config(3, 4)
    cfg.MODEL.RESNETS.NORM = "BN"
    model = build_model(cfg)
    class_layers = class_layers_of(cfg)
    train_only_class_layers(model, class_layers)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.startswith(class_layers)}
    before = {name: b.clone() for name, b in model.named_buffers() if "running" in name}
    assert before
    model.train().backbone(torch.randn(2, 3, 64, 64))
    after = dict(model.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("counts", [(1, 2), (4, 5), (80, 54)])
def test_scale_of_the_start_does_not_depend_on_the_class_counts(counts):
    """As for COCO's 80 things and 54 stuff labels: logits of the same spread for any data."""
    model = build_model(toy_config(*counts))
    for conv, classes in (
        (model.thing_head.mask_head.predictor, 80),
        (model.stuff_head.predictor, 54),
    ):
        assert conv.weight.std().item() == pytest.approx(
            (2 / classes) ** 0.5, rel=0.3
        )  # of 64 weights at least
        assert not conv.bias.any()
