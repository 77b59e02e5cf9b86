"""Learning rates of the backbone, and what has none of its own."""

from __future__ import annotations

import detectron2.solver
import pytest
import timm_configs
import torch
from detectron2.modeling import build_model

from spatialflow.engine import build_optimizer


def timm_config(*args, **kwargs):
    """A small SpatialFlow whose layers have one learning rate."""
    cfg = timm_configs.timm_config(*args, **kwargs)
    cfg.SOLVER.FLOW_MULTIPLIER = 1.0
    return cfg


def factors(cfg, model=None):
    """The learning rate of each parameter as a multiple of SOLVER.BASE_LR, by name."""
    model = model or build_model(cfg)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: group["lr"] / cfg.SOLVER.BASE_LR
        for group in build_optimizer(cfg, model).param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("vit", [False, True])
def test_the_backbone_has_a_factor_and_its_pyramid_has_none(optimizer, vit):
    cfg = timm_config("test_vit" if vit else "test_efficientnet", vit=vit)
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BACKBONE_MULTIPLIER = optimizer, 0.3
    found = factors(cfg)
    part = "backbone.net." if vit else "backbone.bottom_up."
    assert {name: pytest.approx(0.3 if name.startswith(part) else 1) for name in found} == found
    assert len({name.startswith(part) for name in found}) == 2


def test_a_resnet_has_the_factor_too():
    cfg = timm_config("")
    cfg.MODEL.BACKBONE.NAME = "build_spatialflow_resnet_fpn_backbone"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    found = factors(cfg)
    assert found["backbone.bottom_up.stem.conv1.weight"] == pytest.approx(0.1)
    assert found["backbone.fpn_lateral3.weight"] == 1


def test_layer_decay_falls_from_the_last_block_to_the_embedding():
    cfg = timm_config("test_vit", vit=True)
    cfg.SOLVER.LAYER_DECAY, cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5, 0.8
    found = factors(cfg)
    blocks = 1 + max(int(n.split(".")[4]) for n in found if ".blocks." in n)
    model = "backbone.net.model."
    for i in range(blocks):
        factor = 0.8 * 0.5 ** (blocks - i)
        assert found[f"{model}blocks.{i}.mlp.fc1.weight"] == pytest.approx(factor)
    assert found[f"{model}patch_embed.proj.weight"] == pytest.approx(0.8 * 0.5 ** (blocks + 1))
    assert found[f"{model}norm.weight"] == found[f"{model}blocks.{blocks - 1}.mlp.fc1.weight"]
    assert {v for k, v in found.items() if not k.startswith(model)} == {1}


def test_layer_decay_counts_the_blocks_of_stages():
    cfg = timm_config("test_convnext")
    cfg.SOLVER.LAYER_DECAY = 0.9
    found = factors(cfg)
    rates = [v for k, v in found.items() if k.startswith("backbone.bottom_up.model.stages")]
    assert rates == sorted(rates) and len(set(rates)) >= 4
    assert found["backbone.bottom_up.model.stem.0.weight"] < rates[0]


def test_flows_have_a_factor_of_their_own():
    cfg = timm_config("test_efficientnet")
    cfg.SOLVER.FLOW_MULTIPLIER, cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1, 0.3
    found = factors(cfg)
    flows = {name for name in found if ".flows." in name}
    assert "subnets.cls.0.flows.reg.conv.weight" in flows and len(flows) == 20
    assert {name: pytest.approx(0.1) for name in flows} == {n: found[n] for n in flows}
    assert found["subnets.cls.0.conv.weight"] == 1
    assert found["backbone.bottom_up.model.conv_stem.weight"] == pytest.approx(0.3)


def test_what_cannot_be_combined_is_refused():
    cfg = timm_config("")
    cfg.MODEL.BACKBONE.NAME = "build_spatialflow_resnet_fpn_backbone"
    cfg.SOLVER.LAYER_DECAY = 0.9
    with pytest.raises(ValueError, match="LAYER_DECAY is 0.9, but ResNet does not number"):
        factors(cfg)
    cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    with pytest.raises(ValueError, match="BIAS_LR_FACTOR is 2.0, which cannot be combined"):
        factors(cfg)


def test_sgd_is_that_of_detectron2():
    cfg = timm_config("test_efficientnet")
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BIAS_LR_FACTOR = "SGD", 2.0
    cfg.SOLVER.NESTEROV, cfg.SOLVER.WEIGHT_DECAY_BIAS = True, 0.001
    model = build_model(cfg)
    found, expected = build_optimizer(cfg, model), detectron2.solver.build_optimizer(cfg, model)
    assert type(found).__mro__[1] is type(expected).__mro__[1] is torch.optim.SGD
    assert found.defaults == expected.defaults
    for a, b in zip(found.param_groups, expected.param_groups, strict=True):
        assert [id(p) for p in a.pop("params")] == [id(p) for p in b.pop("params")]
        assert a == b
