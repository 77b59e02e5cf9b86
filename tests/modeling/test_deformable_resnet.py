"""Deformable ResNet stages and norms, by Detectron2's own keys."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm, ShapeSpec
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from detectron2.utils import comm

from spatialflow.modeling.backbone import build_resnet
from spatialflow.modeling.deform_conv import DeformBottleneckBlock, DeformConv, ModulatedDeformConv
from spatialflow.modeling.norms import norm_for_processes

INPUT = ShapeSpec(channels=3)


def tiny_cfg(**resnets):
    """R50, 8 channels in res2, everything trained."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    small = {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 8, "WIDTH_PER_GROUP": 4, "NORM": "BN"}
    small |= {"OUT_FEATURES": ["res3", "res4", "res5"]}
    for key, value in {**small, **resnets}.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


DEFORMABLE = {"DEFORM_ON_PER_STAGE": [False, True, True, True], "DEFORM_MODULATED": True}


def deformable_blocks(resnet):
    return {
        name for name, block in resnet.named_modules() if isinstance(block, DeformBottleneckBlock)
    }


def test_the_stages_that_are_asked_for_are_deformable():
    resnet = build_resnet(tiny_cfg(**DEFORMABLE), INPUT)
    expected = {f"res{s}.{i}" for s, n in ((3, 4), (4, 6), (5, 3)) for i in range(n)}
    assert deformable_blocks(resnet) == expected


@pytest.mark.parametrize(("modulated", "channels"), [(True, 27), (False, 18)])
def test_names_and_shapes_are_those_of_detectron2s_block(modulated, channels):
    grouped = {"NUM_GROUPS": 2, "WIDTH_PER_GROUP": 2}
    plain = build_resnet_backbone(tiny_cfg(**grouped), INPUT).state_dict()
    cfg = tiny_cfg(
        **grouped,
        DEFORM_ON_PER_STAGE=[False, False, False, True],
        DEFORM_MODULATED=modulated,
        DEFORM_NUM_GROUPS=2,
    )
    deformable = build_resnet(cfg, INPUT).state_dict()
    added = {key: tuple(deformable[key].shape) for key in deformable if key not in plain}
    expected = {}
    for i in range(3):
        expected[f"res5.{i}.conv2_offset.weight"] = (2 * channels, 32, 3, 3)
        expected[f"res5.{i}.conv2_offset.bias"] = (2 * channels,)
    assert added == expected
    assert all(deformable[key].shape == plain[key].shape for key in plain)


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_unmodulated_block_starts_as_the_plain_block(stride_in_1x1):
    cfg = tiny_cfg(STRIDE_IN_1X1=stride_in_1x1)
    plain = build_resnet_backbone(cfg, INPUT).eval()
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [True] * 4
    deformable = build_resnet(cfg, INPUT).eval()
    missing = deformable.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert len(missing) == 2 * (3 + 4 + 6 + 3)
    assert all("conv2_offset" in key for key in missing)
    image = torch.randn(2, 3, 64, 96)
    for name, feature in plain(image).items():
        torch.testing.assert_close(deformable(image)[name], feature, rtol=1e-3, atol=1e-3)


def test_modulation_starts_at_one_half():
    conv = torch.nn.Conv2d(4, 6, 3, padding=1, bias=False)
    modulated = ModulatedDeformConv(4, 6, 3, padding=1, bias=False)
    modulated.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 5, 7)
    offsets = torch.zeros(2, modulated.num_offset_channels, 5, 7)
    torch.testing.assert_close(modulated(x, offsets), conv(x) / 2)


def test_offsets_move_what_is_sampled_and_norm_and_activation_follow():
    conv = DeformConv(1, 1, 1, bias=False, norm=torch.nn.BatchNorm2d(1).eval(), activation=F.relu)
    torch.nn.init.constant_(conv.weight, -1)
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    offsets = torch.zeros(1, 2, 3, 4)
    offsets[:, 1] = 1  # dx
    shifted = F.pad(x, (0, 1))[..., 1:]
    torch.testing.assert_close(conv(-x, offsets), shifted / (1 + 1e-5) ** 0.5)
    assert conv(x, offsets).count_nonzero() == 0


def test_grouped_deformable_convolution_equals_its_groups_apart():
    both = DeformConv(4, 6, 3, padding=1, groups=2, bias=False)
    x, offsets = torch.randn(1, 4, 6, 6), torch.randn(1, 18, 6, 6)
    parts = []
    for i in range(2):
        one = DeformConv(2, 3, 3, padding=1, bias=False)
        one.weight.data = both.weight.data[3 * i : 3 * i + 3]
        parts.append(one(x[:, 2 * i : 2 * i + 2], offsets))
    torch.testing.assert_close(both(x, offsets), torch.cat(parts, dim=1))


def test_gradients_reach_offsets_and_weights():
    resnet = build_resnet(tiny_cfg(**DEFORMABLE), INPUT)
    sum(f.square().mean() for f in resnet(torch.randn(2, 3, 64, 64)).values()).backward()
    for name in deformable_blocks(resnet):
        block = resnet.get_submodule(name)
        assert block.conv2.weight.grad.any(), name
        assert block.conv2_offset.weight.grad.any(), name


def test_frozen_stages_stay_frozen():
    cfg = tiny_cfg(DEFORM_ON_PER_STAGE=[True, True, False, False])
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    resnet = build_resnet(cfg, INPUT)
    assert not any(p.requires_grad for p in resnet.res2.parameters())
    assert all(p.requires_grad for p in resnet.res3.parameters())
    assert isinstance(resnet.res2[0].conv2.norm, FrozenBatchNorm2d)


def test_resnet_without_bottlenecks_cannot_be_deformable():
    cfg = tiny_cfg(DEPTH=18, RES2_OUT_CHANNELS=64, **DEFORMABLE)
    with pytest.raises(ValueError, match=r"DEFORM_ON_PER_STAGE .* MODEL.RESNETS.DEPTH 18"):
        build_resnet(cfg, INPUT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_numbers_of_the_cpu():
    resnet = build_resnet(tiny_cfg(**DEFORMABLE), INPUT).eval()
    for name in deformable_blocks(resnet):
        torch.nn.init.normal_(resnet.get_submodule(name).conv2_offset.weight, std=0.1)
    image = torch.randn(1, 3, 64, 64)

    def run(device):
        resnet.to(device).zero_grad()
        features = resnet(image.to(device))
        sum(f.sum() for f in features.values()).backward()
        grads = [p.grad.cpu().clone() for p in resnet.parameters()]
        return [f.detach().cpu() for f in features.values()] + grads

    with torch.backends.cudnn.flags(enabled=False):
        for cpu, cuda in zip(run("cpu"), run("cuda"), strict=True):
            torch.testing.assert_close(cuda, cpu, rtol=1e-3, atol=1e-3 * float(cpu.abs().max()))


def test_syncbn_is_bn_in_a_single_process(caplog):
    with caplog.at_level(logging.WARNING):
        resnet = build_resnet(tiny_cfg(NORM="SyncBN"), INPUT)
    assert not caplog.records  # it would be wrong for evaluation
    assert type(resnet.res5[0].conv2.norm) is torch.nn.BatchNorm2d


def test_syncbn_of_several_processes_is_torchs_on_cuda_and_detectron2s_on_the_cpu(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    assert norm_for_processes("SyncBN", "cuda:1") == "SyncBN"
    assert norm_for_processes("SyncBN", "cpu") == "naiveSyncBN_N"
    cfg = tiny_cfg(NORM="SyncBN")
    cfg.MODEL.DEVICE = "cpu"
    assert isinstance(build_resnet(cfg, INPUT).res5[0].conv2.norm, NaiveSyncBatchNorm)


def test_other_norms_are_left_alone():
    assert [norm_for_processes(n, "cpu") for n in ("FrozenBN", "GN", "")] == ["FrozenBN", "GN", ""]
