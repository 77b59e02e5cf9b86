"""Which layers depend on the classes, and training them alone."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

import spatialflow.modeling  # noqa: F401  registers the model
from spatialflow.model_zoo import get_config
from spatialflow.modeling.class_layers import is_class_layer


def build(num_things: int, num_stuff: int, name: str = "toy/spatialflow_toy.yaml", **resnets):
    cfg = get_config(name)
    cfg.MODEL.RETINANET.NUM_CLASSES = num_things
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_stuff
    cfg.MODEL.DEVICE = "cpu"
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    cfg.MODEL.SPATIALFLOW.CLASS_LAYERS.TRAIN_ONLY = bool(resnets)
    return build_model(cfg)


@pytest.mark.parametrize("counts", [(5, 4), (3, 9), (5, 9)])
def test_class_layers_are_those_whose_shape_follows_the_class_counts(counts):
    few, other = build(3, 4).state_dict(), build(*counts).state_dict()
    assert few.keys() == other.keys()
    differ = {name for name in few if few[name].shape != other[name].shape}
    assert differ and all(is_class_layer(name) for name in differ)
    if counts == (5, 9):
        assert differ == {name for name in few if is_class_layer(name)}


def test_training_class_layers_alone_leaves_batch_statistics_too():
    model = build(3, 4, NORM="BN")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if is_class_layer(name)}
    before = {name: b.clone() for name, b in model.named_buffers() if "running" in name}
    assert before
    model.train().backbone(torch.randn(2, 3, 64, 64))
    after = dict(model.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("counts", [(1, 2), (4, 5), (80, 54)])
def test_scale_of_the_start_does_not_depend_on_the_class_counts(counts):
    """As for COCO's 80 things and 54 stuff labels: logits of the same spread for any data."""
    model = build(*counts)
    for conv, classes in (
        (model.thing_head.mask_head.predictor, 80),
        (model.stuff_head.predictor, 54),
    ):
        assert conv.weight.std().item() == pytest.approx(
            (2 / classes) ** 0.5, rel=0.3
        )  # of 64 weights at least
        assert not conv.bias.any()
