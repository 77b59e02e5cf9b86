"""Backbones of timm: levels, normalisation, frozen layers, weights."""

from __future__ import annotations

import logging
import math
import sys

import pytest
import timm
import torch
from builders import make_input
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.utils.events import EventStorage
from timm.layers import BatchNormAct2d
from timm_configs import LITE0, LITE0_WEIGHTS, bottom_up, timm_config

from spatialflow.checkpoint import SafeCheckpointer
from spatialflow.checkpoint.start_weights import load_start_weights
from spatialflow.modeling.backbone import P6P7
from spatialflow.modeling.class_layers import train_only_class_layers

HIERARCHICAL = (
    "test_convnext",
    "test_efficientnet",
    "test_resnet",
    "repvit_m0_9",
    "mambaout_femto",
)
SWIN = "swin_tiny_patch4_window7_224"
VIT = "test_vit"
FOR_RCNN = ["res2", "res3", "res4", "res5"]


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", [*HIERARCHICAL, SWIN, VIT])
@pytest.mark.parametrize("for_rcnn", [False, True])
def test_levels_have_the_strides_of_their_names(name, for_rcnn):
    cfg = timm_config(name, vit=name == VIT)
    if for_rcnn:
        cfg.MODEL.FPN.IN_FEATURES = FOR_RCNN
    backbone = build_backbone(cfg).eval()
    assert isinstance(backbone.top_block, LastLevelMaxPool if for_rcnn else P6P7)
    assert backbone.size_divisibility == 32
    levels = range(2, 7) if for_rcnn else range(3, 8)
    shapes = {k: (s.channels, s.stride) for k, s in backbone.output_shape().items()}
    assert shapes == {f"p{k}": (32, 2**k) for k in levels}
    features = backbone(torch.randn(1, 3, 96, 160))
    sizes = {
        k: (math.ceil(96 / 2**i), math.ceil(160 / 2**i))
        for i, k in zip(levels, shapes, strict=True)
    }
    assert {k: tuple(v.shape[-2:]) for k, v in features.items()} == sizes


def test_p2_to_p7_for_a_model_whose_things_and_stuff_see_p2():
    cfg = timm_config("test_efficientnet")
    cfg.MODEL.BACKBONE.NAME = "build_timm_p2_p7_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = FOR_RCNN
    shapes = build_backbone(cfg).output_shape()
    assert {k: s.stride for k, s in shapes.items()} == {f"p{k}": 2**k for k in range(2, 8)}


@pytest.mark.parametrize("fmt", ["BGR", "RGB"])
@pytest.mark.parametrize("name", [LITE0, "test_resnet", SWIN])
@torch.no_grad()
def test_features_are_those_of_timm_on_its_own_normalisation(name, fmt):
    cfg = timm_config(name, weights=LITE0_WEIGHTS if name == LITE0 else "")
    cfg.INPUT.FORMAT = fmt
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [103.53, 116.28, 123.675], [57.0, 58.0, 59.0]
    model = build_model(cfg).eval()
    load_start_weights(model)
    backbone = model.backbone.bottom_up
    plain = timm.create_model(name, features_only=True, feature_cls="getter").eval()
    theirs = {k.removeprefix("model."): k for k in plain.state_dict()}
    state = {theirs[k]: v for k, v in backbone.model.state_dict().items()}
    assert state.keys() >= set(plain.state_dict())
    plain.load_state_dict(state)
    if name == SWIN:
        plain.model.set_input_size((64, 96), window_size=(7, 7), always_partition=True)

    rgb = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    image = rgb.flip(0) if fmt == "BGR" else rgb
    found = backbone(model.preprocess_image([{"image": image}]).tensor)
    mean, std = (torch.tensor(plain.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = dict(
        zip(plain.feature_info.reduction(), plain((rgb / 255 - mean)[None] / std), strict=True)
    )
    for feature, stride in (("res3", 8), ("res4", 16), ("res5", 32)):
        torch.testing.assert_close(found[feature], expected[stride], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "freeze_at, frozen",
    [
        (0, ()),
        (1, ("conv_stem.", "bn1.")),
        (2, ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")),
        (4, ("conv_stem.", "bn1.", *(f"blocks.{i}." for i in range(5)))),
        (5, ("",)),
    ],
)
def test_first_layers_are_frozen(freeze_at, frozen):
    cfg = timm_config(LITE0)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    model = bottom_up(cfg).model
    assert trained(model) == {n for n, _ in model.named_parameters() if not n.startswith(frozen)}


def test_first_blocks_of_a_vit_are_frozen():
    cfg = timm_config(VIT, vit=True)
    cfg.MODEL.BACKBONE.FREEZE_AT = 3
    model = bottom_up(cfg).model
    fixed = {n.rpartition(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert {"patch_embed.proj"} < fixed
    assert {n.split(".")[1] for n in fixed if n.startswith("blocks")} == {"0", "1"}


@pytest.mark.parametrize("norm_eval", [True, False])
def test_batch_norms_keep_their_statistics_and_their_activation(norm_eval):
    cfg = timm_config("test_efficientnet", NORM_EVAL=norm_eval)
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    backbone = bottom_up(cfg).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {k for k, v in before.items() if not torch.equal(v, backbone.state_dict()[k])}
    expected = set() if norm_eval else {k for k in before if "blocks" in k and k[13] not in "01"}
    assert changed == expected
    norms = [m for m in backbone.modules() if isinstance(m, BatchNormAct2d)]
    assert len(norms) > 10
    assert any(not isinstance(m.act, torch.nn.Identity) for m in norms)
    assert any(n.startswith("model.blocks.2") and "bn" in n for n in trained(backbone))


@torch.no_grad()
def test_training_class_layers_alone_leaves_the_backbone_as_it_is():
    model = build_model(timm_config("test_efficientnet", NORM_EVAL=False))
    images = model.preprocess_image([make_input()]).tensor
    expected = model.eval().backbone(images)
    train_only_class_layers(model, model.class_layers)
    found = model.train().backbone(images)
    assert all(torch.equal(found[level], feature) for level, feature in expected.items())
    assert trained(model) == {
        n for n, _ in model.named_parameters() if n.startswith(model.class_layers)
    }


def test_drop_path():
    backbone = bottom_up(timm_config("test_convnext", DROP_PATH=0.5)).train()
    x = torch.randn(1, 3, 64, 64)
    assert not torch.equal(backbone(x)["res5"], backbone(x)["res5"])
    backbone.eval()
    assert torch.equal(backbone(x)["res5"], backbone(x)["res5"])
    with pytest.raises(ValueError, match="DROP_PATH is 0.1.*no stochastic depth"):
        bottom_up(timm_config("repvit_m0_9", DROP_PATH=0.1))


@pytest.mark.parametrize(
    "config, name, weights",
    [
        ("toy/spatialflow_toy.yaml", LITE0, LITE0_WEIGHTS),
        ("toy/panoptic_fpn_toy.yaml", LITE0, LITE0_WEIGHTS),
        ("toy/spatialflow_toy.yaml", VIT, ""),
        ("toy/panoptic_fpn_toy.yaml", VIT, ""),
    ],
)
def test_models_train_a_step_and_infer(config, name, weights):
    cfg = timm_config(name, config, weights, vit=name == VIT)
    model = build_model(cfg).train()
    SafeCheckpointer(model).load("")
    batch = [make_input(boxes=[(8, 8, 40, 40)])]
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(loss.isfinite() for loss in losses.values())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert any(".model.blocks." in n for n in changed)
    assert "panoptic_seg" in model.eval()(batch)[0]


@pytest.mark.parametrize(
    "keys, vit, message",
    [
        ({"name": ""}, False, "MODEL.TIMM.NAME is empty"),
        (
            {"name": "convnext_tinny"},
            False,
            "timm .* has no 'convnext_tinny'; close are .*convnext_t",
        ),
        (
            {"name": "convnext_tiny.absent"},
            False,
            "has no 'convnext_tiny.absent'; it has convnext_",
        ),
        ({"name": VIT}, False, "Plain ViTs are for .*build_timm_vit_backbone"),
        ({"name": "test_resnet"}, True, "not a plain ViT.*build_timm_fpn_backbone"),
    ],
)
def test_names_that_do_not_fit_are_one_message(keys, vit, message):
    with pytest.raises(ValueError, match=message):
        bottom_up(timm_config(vit=vit, **keys))


def test_other_channel_orders_are_refused():
    cfg = timm_config(VIT, vit=True)
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match="INPUT.FORMAT is BGR or RGB.*'L'"):
        bottom_up(cfg)


def test_without_timm_a_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ValueError, match=r"timm is not installed: pip install 'spatialflow\[timm\]'"
    ):
        bottom_up(timm_config(LITE0))


def test_the_licence_of_the_weights_is_in_the_log(caplog):
    with caplog.at_level(logging.INFO, "spatialflow"):
        bottom_up(timm_config("vit_small_patch16_dinov3", vit=True))
    assert "licence of timm's weights lvd1689m: dinov3-license" in caplog.text


@torch.no_grad()
def test_patches_of_14_pixels_become_16():
    name = "vit_small_patch14_dinov2"
    theirs = timm.create_model(name, pretrained=False)
    backbone = bottom_up(timm_config(name, vit=True))
    assert backbone.model.patch_embed.proj.weight.shape[-2:] == (16, 16)
    backbone.load_start_weights(theirs.state_dict())
    assert torch.equal(backbone.model.pos_embed, theirs.pos_embed)
    assert torch.equal(backbone.model.blocks[3].attn.qkv.weight, theirs.blocks[3].attn.qkv.weight)
    # A patch of one colour has the same embedding at both sizes.
    small = theirs.patch_embed.proj(torch.ones(1, 3, 14, 14))
    large = backbone.model.patch_embed.proj(torch.ones(1, 3, 16, 16))
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)


def test_dilation_takes_the_place_of_strides_in_a_trunk():
    cfg = timm_config(LITE0, "toy/jsis_net_toy.yaml")
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    trunk = build_backbone(cfg)
    features = trunk(torch.zeros(1, 3, 64, 96))
    assert trunk.output_shape()["res4"].stride == 8
    assert features["res4"].shape[-2:] == (8, 12)


def test_models_without_dilation_are_refused_where_it_is_asked_for():
    cfg = timm_config("swin_tiny_patch4_window7_224", "toy/jsis_net_toy.yaml")
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    with pytest.raises(ValueError, match="OUTPUT_STRIDE is 8, but timm's SwinTransformer has no"):
        build_backbone(cfg)
