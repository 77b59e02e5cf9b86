"""Configs by name, the table of results, and torchvision's weights."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torchvision.models import resnet18, resnext50_32x4d

from spatialflow import model_zoo
from spatialflow.checkpoint.torchvision_weights import PREFIX, convert
from spatialflow.config import load_config
from spatialflow.engine.setup import check_schedule
from spatialflow.modeling.backbone import build_resnet
from spatialflow.tools.zoo.markdown import describe_backbone, describe_training, render
from spatialflow.tools.zoo.results import DETECTION_RESULTS, INSTANCE_RESULTS, PANOPTIC_RESULTS

MODEL_ZOO = Path(__file__).resolve().parents[1] / "MODEL_ZOO.md"
NOT_LISTED = ("quick_schedules/",)
"""Schedules for a look at things, whose results say nothing about the model."""


def test_names_are_files_that_can_be_run():
    names = model_zoo.config_names()
    assert "COCO/spatialflow_R_50_20e.yaml" in names
    assert not any("Base-" in name for name in names)
    assert all(Path(model_zoo.get_config_file(name)).is_file() for name in names)


def test_config_is_the_files():
    cfg = model_zoo.get_config("COCO/spatialflow_R_101_20e.yaml")
    assert cfg == load_config(model_zoo.get_config_file("COCO/spatialflow_R_101_20e.yaml"))
    assert cfg.MODEL.RESNETS.DEPTH == 101 and not cfg.is_frozen()


def test_unknown_name_is_answered_with_close_ones():
    with pytest.raises(ValueError, match=r"COCO/spatialflow_R_50\.yaml.*spatialflow_R_50_20e"):
        model_zoo.get_config_file("COCO/spatialflow_R_50.yaml")
    with pytest.raises(ValueError, match="no config '../../etc/passwd'"):
        model_zoo.get_config_file("../../etc/passwd")


def test_model_zoo_md_is_up_to_date():
    hint = "run `spatialflow zoo > MODEL_ZOO.md`"
    assert MODEL_ZOO.read_text() == render(), hint


def test_every_config_is_listed():
    listed = {r.config for results in PANOPTIC_RESULTS.values() for r in results}
    listed |= {r.config for r in [*DETECTION_RESULTS, *INSTANCE_RESULTS]}
    expected = {n for n in model_zoo.config_names() if not n.startswith(NOT_LISTED)}
    assert listed == expected


def test_overrides_for_another_batch_size_are_those_that_training_asks_for():
    command = MODEL_ZOO.read_text().split("python train_net.py ")[1].split("\n\n")[0]
    _, config_file, *opts = shlex.split(command.replace("\\\n", " "))
    cfg = load_config(str(MODEL_ZOO.parent / config_file), opts)
    check_schedule(cfg)
    start = opts.index("SOLVER.REFERENCE_IMS_PER_BATCH")
    cfg = load_config(str(MODEL_ZOO.parent / config_file), opts[:start])
    with pytest.raises(ValueError) as refused:
        check_schedule(cfg)
    asked_for = shlex.split(str(refused.value).splitlines()[1])
    assert sorted(zip(asked_for[::2], asked_for[1::2], strict=True)) == sorted(
        zip(opts[start::2], opts[start + 1 :: 2], strict=True)
    )


def test_descriptions():
    cfg = model_zoo.get_config("COCO/spatialflow_X_101_64x4d_DCN_SyncBN_20e_ms.yaml")
    assert describe_backbone(cfg) == "X-101-64x4d-DCN-SyncBN"
    assert describe_training(cfg) == "295,720 x 8, 400 to 1400 px"
    cfg = model_zoo.get_config("Cityscapes/spatialflow_R_50.yaml")
    assert describe_backbone(cfg) == "R-50"
    assert describe_training(cfg) == "65,000 x 8, 512 to 2048 px, crops of 512 x 1024"
    cfg = model_zoo.get_config("JSIS-Net/jsis_net_R_50_vistas.yaml")
    assert describe_training(cfg) == "171,000 x 2, 512 x 1024 px"


@pytest.mark.parametrize("build", [resnext50_32x4d, resnet18])
def test_torchvisions_weights_give_torchvisions_features(build):
    theirs = build().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    cfg = get_cfg()
    resnets = cfg.MODEL.RESNETS
    resnets.STRIDE_IN_1X1, resnets.OUT_FEATURES = False, ["res5"]
    if build is resnet18:
        resnets.DEPTH, resnets.RES2_OUT_CHANNELS = 18, 64
    else:
        resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = 32, 4
    ours = build_resnet(cfg, ShapeSpec(channels=3)).eval()
    weights = {key.removeprefix(PREFIX): v for key, v in convert(theirs.state_dict()).items()}
    ours.load_state_dict({k: v for k, v in weights.items() if k in ours.state_dict()}, strict=True)
    left = [key for key in weights if key not in ours.state_dict()]
    assert all(key.endswith("num_batches_tracked") for key in left)
    image = torch.randn(1, 3, 64, 64)
    body = torch.nn.Sequential(*list(theirs.children())[:-2])
    with torch.no_grad():
        torch.testing.assert_close(ours(image)["res5"], body(image), rtol=1e-3, atol=1e-4)
