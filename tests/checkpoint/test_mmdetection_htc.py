"""mmdetection's HTC weights: the names that its layers have, built from the architecture."""

from __future__ import annotations

import pytest
import torch

from spatialflow.checkpoint import load_tensors
from spatialflow.checkpoint.mmdetection_htc import convert_state_dict, rename
from spatialflow.cli import run_command
from spatialflow.model_zoo import get_config_file

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
CHANNELS, WIDTH, CLASSES, LABELS = 256, 1024, 80, 183


def layer(name, *shape, bias=True):
    """Shapes of a layer's weight and bias by name."""
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def batch_norm(name, channels):
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{x}": (channels,) for x in parts} | {f"{name}.num_batches_tracked": ()}


def resnet(depth, groups, width, dcn):
    """``groups`` of ``width`` channels in the first stage's 3x3 convolutions."""
    shapes = layer("backbone.conv1", 64, 3, 7, 7, bias=False) | batch_norm("backbone.bn1", 64)
    inputs = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        middle, outputs = groups * width * 2**stage, 256 * 2**stage
        for block in range(blocks):
            name = f"backbone.layer{stage + 1}.{block}"
            shapes |= layer(f"{name}.conv1", middle, inputs, 1, 1, bias=False)
            shapes |= layer(f"{name}.conv2", middle, middle // groups, 3, 3, bias=False)
            shapes |= layer(f"{name}.conv3", outputs, middle, 1, 1, bias=False)
            for number, channels in enumerate((middle, middle, outputs), start=1):
                shapes |= batch_norm(f"{name}.bn{number}", channels)
            if dcn and stage:
                shapes |= layer(f"{name}.conv2.conv_offset", 18, middle, 3, 3)
            if not block:
                shapes |= layer(f"{name}.downsample.0", outputs, inputs, 1, 1, bias=False)
                shapes |= batch_norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return shapes


def heads():
    """Everything but the ResNet."""
    c = CHANNELS
    shapes = layer("rpn_head.rpn_conv", c, c, 3, 3) | layer("rpn_head.rpn_cls", 3, c, 1, 1)
    shapes |= layer("rpn_head.rpn_reg", 12, c, 1, 1)
    for i in range(4):
        shapes |= layer(f"neck.lateral_convs.{i}.conv", c, c * 2**i, 1, 1)
        shapes |= layer(f"neck.fpn_convs.{i}.conv", c, c, 3, 3)
        shapes |= layer(f"roi_head.semantic_head.convs.{i}.conv", c, c, 3, 3)
    for i in range(5):
        shapes |= layer(f"roi_head.semantic_head.lateral_convs.{i}.conv", c, c, 1, 1)
    shapes |= layer("roi_head.semantic_head.conv_embedding.conv", c, c, 1, 1)
    shapes |= layer("roi_head.semantic_head.conv_logits", LABELS, c, 1, 1)
    for stage in range(3):
        box, mask = f"roi_head.bbox_head.{stage}", f"roi_head.mask_head.{stage}"
        shapes |= layer(f"{box}.shared_fcs.0", WIDTH, c * 49)
        shapes |= layer(f"{box}.shared_fcs.1", WIDTH, WIDTH)
        shapes |= layer(f"{box}.fc_cls", CLASSES + 1, WIDTH) | layer(f"{box}.fc_reg", 4, WIDTH)
        for i in range(4):
            shapes |= layer(f"{mask}.convs.{i}.conv", c, c, 3, 3)
        shapes |= layer(f"{mask}.upsample", c, c, 2, 2)
        shapes |= layer(f"{mask}.conv_logits", CLASSES, c, 1, 1)
        if stage:
            shapes |= layer(f"{mask}.conv_res.conv", c, c, 1, 1)
    return shapes


def state_of(*backbone):
    """A checkpoint's tensors, zeros in next to no memory."""
    return {k: torch.zeros([]).expand(s) for k, s in {**resnet(*backbone), **heads()}.items()}


@pytest.mark.parametrize(
    ("config", "backbone"),
    [
        ("htc_R_50_20e", (50, 1, 64, False)),
        ("htc_R_101_20e", (101, 1, 64, False)),
        ("htc_X_101_64x4d_20e", (101, 64, 4, False)),
        ("htc_X_101_64x4d_DCN_20e_ms", (101, 64, 4, True)),
    ],
)
def test_every_tensor_has_its_place_in_the_config(config, backbone, tmp_path, capsys):
    state = state_of(*backbone)
    source, output = tmp_path / "theirs.pth", tmp_path / "ours.pth"
    torch.save({"meta": {"epoch": 20}, "state_dict": state}, source)
    file = get_config_file(f"HTC/{config}.yaml")
    run_command("convert-checkpoint", [str(source), str(output), "--config-file", file])
    lines = capsys.readouterr().out.splitlines()
    written = load_tensors(str(output))["model"]
    assert f"{len(written)} tensors written to {output}" == lines[-1]
    used = [key for key in state if not key.endswith(".num_batches_tracked")]
    assert {rename(key) for key in used} == written.keys() and len(used) == len(written)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.layer2.3.conv2.conv_offset.bias", "backbone.bottom_up.res3.3.conv2_offset.bias"),
        ("neck.fpn_convs.3.conv.weight", "backbone.fpn_output5.weight"),
        ("rpn_head.rpn_reg.bias", "proposal_generator.rpn_head.anchor_deltas.bias"),
        ("roi_head.bbox_head.2.shared_fcs.1.bias", "roi_heads.box_head.2.fc2.bias"),
        ("roi_head.mask_head.1.convs.0.conv.weight", "roi_heads.mask_head.1.mask_fcn1.weight"),
        ("roi_head.mask_head.2.conv_res.conv.bias", "roi_heads.mask_head.2.flow.bias"),
        (
            "roi_head.semantic_head.lateral_convs.4.conv.bias",
            "semantic_head.lateral_convs.p6.bias",
        ),
        ("roi_head.semantic_head.conv_logits.weight", "semantic_head.predictor.weight"),
        ("bbox_head.0.fc_cls.weight", None),
    ],
)
def test_names(theirs, ours):
    assert rename(theirs) == ours


def test_values_are_kept_in_float32():
    state = {"rpn_head.rpn_cls.bias": torch.tensor([1.0, 2, 3], dtype=torch.float16)}
    (value,) = convert_state_dict(state).values()
    assert value.dtype == torch.float32 and value.tolist() == [1, 2, 3]


def test_weights_of_version_1_are_refused_with_a_way_out():
    with pytest.raises(ValueError, match="HTC: it has mask_head.0.*upgrade_model_version.py"):
        convert_state_dict({"mask_head.0.conv_logits.weight": torch.zeros(81, 256, 1, 1)})


def test_config_of_a_model_without_a_converter_is_refused(tmp_path):
    file = get_config_file("panoptic_fpn/panoptic_fpn_R_50.yaml")
    torch.save({"state_dict": {}}, tmp_path / "theirs.pth")
    arguments = [str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth"), "--config-file", file]
    with pytest.raises(SystemExit, match="converted for SpatialFlow and Hybrid.*, not for Panopt"):
        run_command("convert-checkpoint", arguments)
