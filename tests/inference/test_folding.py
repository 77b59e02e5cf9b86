"""Batch norms folded into timm's convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import make_input, randomize
from detectron2.modeling import build_model
from timm_configs import LITE0, bottom_up, timm_config
from torch import nn

from spatialflow import optimize
from spatialflow.inference.folding import fold_batch_norms
from spatialflow.modeling import as_panoptic_model


def with_random_norms(module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            randomize(part)
    return module.eval()


@pytest.mark.parametrize("name", [LITE0, "test_efficientnet", "test_resnet", "repvit_m0_9"])
@torch.no_grad()
def test_features_are_equal_and_no_batch_norm_is_left(name):
    backbone = with_random_norms(bottom_up(timm_config(name)))
    folded = copy.deepcopy(backbone)
    fold_batch_norms(folded)
    x = torch.randn(2, 3, 64, 96)
    for level, feature in backbone(x).items():
        scale = feature.abs().max()
        torch.testing.assert_close(folded(x)[level] / scale, feature / scale, rtol=0, atol=1e-5)
    assert any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    activations = [m for m in folded.modules() if isinstance(m, nn.ReLU6)]
    assert bool(activations) == (name == LITE0)


class TwoReaders(nn.Module):
    """The output of the convolution is read beside its norm, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward_intermediates(self, x, **kwargs):
        y = self.conv(x)
        return [y + self.bn(y)]


def test_a_norm_whose_input_has_another_reader_is_not_folded():
    backbone = bottom_up(timm_config("test_resnet"))
    backbone.model, backbone._out_features = with_random_norms(TwoReaders()), ["res3"]
    x = torch.randn(1, 3, 8, 8)
    expected = backbone(x)["res3"]
    fold_batch_norms(backbone)
    assert isinstance(backbone.model.bn, nn.BatchNorm2d)
    torch.testing.assert_close(backbone(x)["res3"], expected)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("config", ["toy/spatialflow_toy.yaml", "toy/panoptic_fpn_toy.yaml"])
@torch.no_grad()
def test_optimized_models_have_equal_stuff_scores(config, channels_last):
    cfg = timm_config("test_efficientnet", config)
    model = as_panoptic_model(with_random_norms(build_model(cfg)), cfg)
    fast = optimize(model, channels_last=channels_last)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    (found,), (expected,) = (m([make_input()]) for m in (fast, model))
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_images_stay_in_the_layout_of_the_fast_path():
    cfg = timm_config("test_efficientnet")
    fast = optimize(build_model(cfg).eval())
    layouts = []
    for module in fast.model.backbone.bottom_up.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, args: layouts.append(
                    args[0].is_contiguous(memory_format=torch.channels_last)
                )
            )
    fast([make_input()])
    assert len(layouts) > 10 and all(layouts)
