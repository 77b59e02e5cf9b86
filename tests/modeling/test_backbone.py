"""The FPN with P3 to P7 that a config builds."""

import pytest
import torch
from detectron2.modeling import build_backbone

from spatialflow.config import config_dir, load_config


@pytest.fixture
def cfg():
    cfg = load_config(str(config_dir() / "Base-Small.yaml"))
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM = 16, ""
    return cfg


def test_levels_have_strides_8_to_128(cfg):
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {
        f"p{i}": 2**i for i in range(3, 8)
    }
    assert {shape.channels for shape in shapes.values()} == {16}
    assert backbone.size_divisibility == 32
    features = backbone(torch.randn(1, 3, 96, 160))
    assert {name: tuple(f.shape) for name, f in features.items()} == {
        "p3": (1, 16, 12, 20),
        "p4": (1, 16, 6, 10),
        "p5": (1, 16, 3, 5),
        "p6": (1, 16, 2, 3),
        "p7": (1, 16, 1, 2),
    }


@pytest.mark.parametrize("relu", [True, False])
def test_p6_is_made_from_c5_and_p7_from_p6(cfg, relu):
    cfg.MODEL.SPATIALFLOW.P7_RELU = relu
    backbone = build_backbone(cfg)
    image = torch.randn(1, 3, 128, 128)
    features = backbone(image)
    p6 = backbone.top_block.p6(backbone.bottom_up(image)["res5"])
    assert (p6 < 0).any()
    torch.testing.assert_close(features["p6"], p6)
    p7 = backbone.top_block.p7(p6.relu() if relu else p6)
    torch.testing.assert_close(features["p7"], p7)


def test_weights_do_not_depend_on_the_relu(cfg):
    names = set(build_backbone(cfg).state_dict())
    cfg.MODEL.SPATIALFLOW.P7_RELU = False
    assert set(build_backbone(cfg).state_dict()) == names


def test_p6_and_p7_have_the_norm_of_the_other_levels(cfg):
    plain = set(build_backbone(cfg).state_dict())
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM = 32, "GN"
    backbone = build_backbone(cfg)
    assert {"top_block.p6.bias", "top_block.p7.bias"} <= plain
    assert "top_block.p6.norm.weight" in backbone.state_dict()
    torch.manual_seed(0)
    features = backbone(20 * torch.randn(1, 3, 256, 320))
    for name, feature in features.items():
        assert 0.9 < feature.square().mean().sqrt() < 1.1, name
    single_cell = backbone(torch.randn(1, 3, 64, 64))["p7"]
    assert single_cell.shape[-2:] == (1, 1)
    assert single_cell.isfinite().all()


def test_deeplab_stem_has_the_names_and_shapes_of_detectron2s(cfg):
    """Those of the stem in DeepLab/R-52.pkl, which loads as it is."""
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STEM_TYPE = 50, "deeplab"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 128, "FrozenBN"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.BACKBONE.FREEZE_AT = 256, 2
    backbone = build_backbone(cfg).bottom_up
    stem = {k: tuple(v.shape) for k, v in backbone.stem.state_dict().items() if v.ndim == 4}
    assert stem == {
        "conv1.weight": (64, 3, 3, 3),
        "conv2.weight": (64, 64, 3, 3),
        "conv3.weight": (128, 64, 3, 3),
    }
    assert "conv1.norm.running_mean" in backbone.stem.state_dict()
    assert backbone.res2[0].conv1.weight.shape == (64, 128, 1, 1)
    assert not any(p.requires_grad for p in backbone.stem.parameters())
    assert backbone.stem(torch.zeros(1, 3, 64, 96)).shape == (1, 128, 16, 24)


def test_another_stem_is_refused(cfg):
    cfg.MODEL.RESNETS.STEM_TYPE = "resnet-d"
    with pytest.raises(ValueError, match="STEM_TYPE is .* not 'resnet-d'"):
        build_backbone(cfg)
