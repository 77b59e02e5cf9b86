"""Conversion of the authors' weights: names, orders, refusals, the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from recordings import OFFICIAL

from spatialflow.checkpoint import load_tensors
from spatialflow.checkpoint.mmdetection import check_fit
from spatialflow.checkpoint.official import convert_state_dict, other_label, rename
from spatialflow.cli import run_command
from spatialflow.model_zoo import get_config, get_config_file

RELEASED = {
    "r50_fpn_20e_coco": "released/spatialflow_R_50_20e.yaml",
    "r101_fpn_20e_coco": "released/spatialflow_R_101_20e.yaml",
    "r101_dcn_fpn_20e_coco_multiscale_fp16": "released/spatialflow_R_101_DCN_multiscale_20e.yaml",
}
"""The authors' configs and those of this project for their weights."""


def released_state(name: str) -> dict[str, torch.Tensor]:
    """All tensors of one of their checkpoints by name and shape, zeros in next to no memory."""
    file = OFFICIAL / f"state_dict_spatialflow_{name}.json"
    rows = json.loads(file.read_text())["state_dict"]
    return {row["key"]: torch.zeros([]).expand(row["shape"]) for row in rows}


def run_tool(source: Path, output: Path, config: str) -> None:
    files = [str(source), str(output), "--config-file", get_config_file(config)]
    run_command("convert-checkpoint", files)


def save_checkpoint(path: Path, state: dict) -> Path:
    """A checkpoint as mmdetection writes it."""
    meta = {"epoch": 20, "CLASSES": ("person", "car")}
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}}}, path)
    return path


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.conv1.weight", "backbone.bottom_up.stem.conv1.weight"),
        ("backbone.layer2.0.bn3.bias", "backbone.bottom_up.res3.0.conv3.norm.bias"),
        ("backbone.layer4.0.downsample.0.weight", "backbone.bottom_up.res5.0.shortcut.weight"),
        (
            "backbone.layer3.5.conv2.conv_offset.bias",
            "backbone.bottom_up.res4.5.conv2_offset.bias",
        ),
        ("neck.lateral_convs.0.conv.bias", "backbone.fpn_lateral3.bias"),
        ("neck.fpn_convs.2.conv.weight", "backbone.fpn_output5.weight"),
        ("neck.fpn_convs.4.conv.weight", "backbone.top_block.p7.weight"),
        ("bbox_head.mask_convs.0.conv.weight", "subnets.thing.0.conv.weight"),
        ("bbox_head.cls_spatial_flow_convs.3.conv.bias", "subnets.cls.3.flows.reg.conv.bias"),
        ("bbox_head.stuff_mask_flow_convs.0.conv.bias", "subnets.thing.0.flows.stuff.conv.bias"),
        ("mask_head.convs.3.conv.weight", "thing_head.mask_head.mask_fcn4.weight"),
        ("stuff_head.lateral_convs.2.4.gn.weight", "stuff_head.p5.4.norm.weight"),
        ("rpn_head.rpn_conv.weight", None),
    ],
)
def test_names(theirs, ours):
    assert rename(theirs) == ours


def test_anchors_go_from_ratios_first_to_scales_first():
    scales, ratios, classes = 2, 3, 4
    # Rows that say what they are for: ratio, scale, class in their order.
    rows = [(r, s, c) for r in range(ratios) for s in range(scales) for c in range(classes)]
    state = {"bbox_head.retina_cls.bias": torch.tensor(rows, dtype=torch.float32)}
    converted = convert_state_dict(state, other_label=0, num_scales=scales, num_ratios=ratios)
    expected = [[r, s, c] for s in range(scales) for r in range(ratios) for c in range(classes)]
    assert converted["detector.cls_score.bias"].tolist() == expected


def test_other_goes_to_0_and_the_rest_keeps_its_order():
    state = {"stuff_head.conv.weight": torch.arange(5.0).view(5, 1, 1, 1)}
    converted = convert_state_dict(state, other_label=3)
    assert converted["stuff_head.predictor.weight"].flatten().tolist() == [3, 0, 1, 2, 4]


def test_label_of_other_on_coco():
    assert other_label(c["id"] for c in COCO_CATEGORIES if not c["isthing"]) == 36


def test_half_precision_becomes_float32_and_counters_are_left_out():
    state = {
        "mask_head.upsample.bias": torch.ones(2, dtype=torch.float16),
        "backbone.bn1.num_batches_tracked": torch.tensor(7),
    }
    converted = convert_state_dict(state, other_label=0)
    assert list(converted) == ["thing_head.mask_head.deconv.bias"]
    assert converted["thing_head.mask_head.deconv.bias"].dtype == torch.float32


@pytest.mark.parametrize(
    ("key", "channels", "message"),
    [
        ("roi_head.fc.weight", 3, "it has roi_head.fc.weight"),
        ("bbox_head.retina_reg.bias", 35, "bbox_head.retina_reg.bias has 35 channels.*9 anchors"),
        ("stuff_head.conv.bias", 36, "stuff_head.conv.bias has 36 channels.*number 36"),
    ],
)
def test_what_is_not_theirs_is_refused(key, channels, message):
    with pytest.raises(ValueError, match=message):
        convert_state_dict({key: torch.zeros(channels)}, other_label=36)


def test_every_tensor_that_does_not_fit_is_named():
    model = {
        "same": torch.zeros(2),
        "narrow": torch.zeros(2, 3),
        "missing": torch.zeros(1),
        "norm.num_batches_tracked": torch.tensor(0),
    }
    fitting = {"same": torch.ones(2), "narrow": torch.ones(2, 3), "missing": torch.ones(1)}
    check_fit(fitting, model)
    weights = {"same": torch.ones(2), "narrow": torch.ones(2, 4), "extra": torch.ones(1)}
    with pytest.raises(ValueError) as refused:
        check_fit(weights, model)
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [
        "missing: not in the weights",
        "extra: not in the model",
        "narrow: 2x4 in the weights, 2x3 in the model",
    ]


@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoint_fills_its_config(name, tmp_path, capsys):
    state = released_state(name)
    source, output = save_checkpoint(tmp_path / "theirs.pth", state), tmp_path / "sub" / "ours.pth"
    run_tool(source, output, RELEASED[name])
    lines = capsys.readouterr().out.splitlines()
    written = load_tensors(str(output))["model"]
    assert f"{len(written)} tensors written to {output}" == lines[-1]
    printed = {line.split()[0]: line for line in lines[2:-1]}
    assert list(printed) == list(state)
    for key, line in printed.items():
        counter = key.endswith(".num_batches_tracked")
        assert counter == ("not needed" in line)
        assert counter or line.split()[1] in written
    assert "anchors reordered" in printed["bbox_head.retina_cls.weight"]
    assert "'other' moved to 0" in printed["stuff_head.conv.bias"]


def test_checkpoint_of_another_depth_is_refused(tmp_path, capsys):
    source = save_checkpoint(tmp_path / "theirs.pth", released_state("r50_fpn_20e_coco"))
    with pytest.raises(SystemExit) as stopped:
        run_tool(source, tmp_path / "ours.pth", RELEASED["r101_fpn_20e_coco"])
    assert "backbone.bottom_up.res4.22.conv3.weight: not in the weights" in str(stopped.value.code)
    assert not (tmp_path / "ours.pth").exists()


def test_other_files_are_refused(tmp_path):
    config, source = RELEASED["r50_fpn_20e_coco"], tmp_path / "theirs.pth"

    def message() -> str:
        with pytest.raises(SystemExit) as stopped:
            run_tool(source, tmp_path / "ours.pth", config)
        assert not (tmp_path / "ours.pth").exists()
        return str(stopped.value.code)

    assert "theirs.pth not found" in message()
    torch.save({"model": {}}, source)
    assert "no 'state_dict'" in message()
    save_checkpoint(source, {"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)})
    assert "detector.cls_score.weight: not in the weights" in message()


class RunsCode:
    def __reduce__(self):
        return print, ("executed",)


def test_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    source = tmp_path / "theirs.pth"
    torch.save({"state_dict": {"backbone.conv1.weight": RunsCode()}}, source)
    with pytest.raises(SystemExit, match="theirs.pth"):
        run_tool(source, tmp_path / "ours.pth", RELEASED["r50_fpn_20e_coco"])
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("config", RELEASED.values())
def test_configs_merge_as_the_authors_do(config):
    model = get_config(config).MODEL
    combine, fill = model.PANOPTIC_FPN.COMBINE, model.SPATIALFLOW.BOX_FILL
    assert combine.INSTANCES_CONFIDENCE_THRESH == combine.OVERLAP_THRESH == 0.37
    assert (combine.STUFF_AREA_LIMIT, fill.ENABLED, fill.MIN_FREE) == (4900, True, 0.5)
