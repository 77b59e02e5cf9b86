"""Every config builds, trains a step and infers, at reduced width."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage

from spatialflow.config import config_dir, load_config
from spatialflow.data import PanopticMapper
from spatialflow.engine import Trainer
from spatialflow.engine.setup import check_schedule
from spatialflow.model_zoo import config_names, get_config
from spatialflow.modeling.class_layers import class_layers_of

CONFIGS = config_names()
SIZE = 64
NUM_STUFF = 19
SMALLER = {"convnext_tiny": "test_convnext", "vit_small_patch14_dinov2": "test_vit"}
"""timm's models of the same kind, made for tests."""


def shrunk(name: str) -> CfgNode:
    """The config with few channels and classes; depth, stages, flows, switches stay."""
    cfg = get_config(name)
    model = cfg.MODEL
    model.DEVICE = "cpu"
    model.WEIGHTS = ""
    if model.RESNETS.DEPTH >= 50:
        width = 32 if model.RESNETS.NORM == "GN" else 8  # GroupNorm has 32 groups
        model.RESNETS.STEM_OUT_CHANNELS = model.RESNETS.RES2_OUT_CHANNELS = width
        model.RESNETS.NUM_GROUPS = min(model.RESNETS.NUM_GROUPS, 4)
        model.RESNETS.WIDTH_PER_GROUP = width // model.RESNETS.NUM_GROUPS
    model.TIMM.NAME = SMALLER.get(model.TIMM.NAME.partition(".")[0], model.TIMM.NAME)
    group_norm = "GN" in (model.FPN.NORM, model.ROI_MASK_HEAD.NORM)
    # P7 is one cell, in which a group of GroupNorm needs two channels.
    width = 64 if model.RETINANET.NORM == "GN" else 32 if group_norm else 8
    model.FPN.OUT_CHANNELS = model.ROI_MASK_HEAD.CONV_DIM = width
    model.SPINET.FILTER_CHANNELS = 8
    model.SEM_SEG_HEAD.CONVS_DIM = max(width, 32)
    model.ROI_BOX_HEAD.FC_DIM = 16
    model.JSIS_NET.CHANNELS = model.JSIS_NET.REGION_WIDTH = 32
    model.RETINANET.NUM_CLASSES = model.ROI_HEADS.NUM_CLASSES = 8
    model.SEM_SEG_HEAD.NUM_CLASSES = NUM_STUFF
    # Some detections from random weights, and few of them.
    model.RETINANET.PRIOR_PROB = 0.2
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    cfg.SOLVER.WARMUP_ITERS = 0
    return cfg


def training_batch() -> list[dict]:
    """Two scenes: two things on stuff, and stuff alone."""
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    masks[0, 8:40, 8:30] = masks[1, 20:60, 30:62] = True
    labels = torch.full((SIZE, SIZE), 3)
    labels[masks.any(0)] = 0
    batch = []
    for count in (2, 0):
        instances = Instances((SIZE, SIZE))
        instances.gt_masks = BitMasks(masks[:count])
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        instances.gt_classes = torch.tensor([1, 5])[:count]
        image = torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8)
        crowd_mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        crowd_mask[50:, :20] = count > 0
        batch.append({"image": image, "instances": instances, "crowd_mask": crowd_mask})
        batch[-1] |= {"sem_seg": labels, "height": SIZE, "width": SIZE}
    return batch


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_a_step_and_infers(name):
    cfg = shrunk(name)
    model = Trainer.build_model(cfg).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(cfg, model)
    with EventStorage():  # Detectron2's models log to it
        losses = model(training_batch())
    sum(losses.values()).backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    size = (2 * SIZE, SIZE + 10)
    image = {**training_batch()[0], "height": size[0], "width": size[1]}
    with torch.no_grad():
        result = model.eval()([image])[0]

    assert all(math.isfinite(loss.item()) for loss in losses.values()), losses
    branches = cfg.MODEL.SPATIALFLOW
    panoptic = branches.THING_ON and branches.STUFF_ON and not cfg.MODEL.HTC.COCO_STUFF_LABELS
    assert any(name.startswith("loss_mask") for name in losses) == branches.THING_ON
    assert ("loss_sem_seg" in losses) == branches.STUFF_ON
    assert result["instances"].image_size == size
    assert ("panoptic_seg" in result) == panoptic
    if "panoptic_seg" in result:
        assert result["panoptic_seg"][0].shape == size
        assert result["sem_seg"].shape == (NUM_STUFF, *size)
    if cfg.MODEL.CLASS_LAYERS.TRAIN_ONLY:
        assert changed == {n for n in before if n.startswith(class_layers_of(cfg))}
    else:
        last = f"backbone.bottom_up.{cfg.MODEL.RESNETS.OUT_FEATURES[-1]}."
        trained = (last, last.replace(".bottom_up", ""), "backbone.bottom_up.model.")
        assert any(
            name.startswith((*trained, "backbone.net.model.", "backbone.model."))
            for name in changed
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_schedule_and_input_are_sound(name):
    cfg = get_config(name)
    check_schedule(cfg)
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST
    assert all(0 < step < cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)
    assert cfg.SOLVER.WARMUP_ITERS < cfg.SOLVER.MAX_ITER
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    assert scheduler.get_last_lr()[0] <= cfg.SOLVER.BASE_LR
    for is_train in (True, False):
        PanopticMapper(cfg, is_train)


@pytest.mark.parametrize("name", CONFIGS)
def test_states_only_what_differs_from_its_base(name):
    own = yaml.safe_load((config_dir() / name).read_text())
    bases = own.pop("_BASE_")
    inherited: dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        _merge(inherited, CfgNode.load_yaml_with_base(str((config_dir() / name).parent / base)))
    repeated = [key for key, value in _leaves(own) if dict(_leaves(inherited)).get(key) == value]
    assert not repeated


def _leaves(node: dict, prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _merge(into: dict, node: dict) -> None:
    for key, value in node.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def differences(name: str, base: str) -> dict:
    """What the first config has otherwise than the second."""
    other = dict(_leaves(get_config(base)))
    return {key: value for key, value in _leaves(get_config(name)) if other[key] != value}


FLOWS = ["reg_cls", "reg_stuff", "reg_thing", "stuff_thing"]
NAIVE = {"NUM_STAGES.STUFF": 0, "NUM_STAGES.THING": 0, "FLOWS": []}
ABLATIONS = {
    "naive": NAIVE,
    "table_5_subnets": {"FLOWS": []},
    "table_5_flows": {**NAIVE, "FLOWS": FLOWS},
    "table_9_reg_cls": {"FLOWS": FLOWS[:1]},
    "table_9_reg_stuff": {"FLOWS": FLOWS[:2]},
    "table_9_reg_thing": {"FLOWS": FLOWS[:3]},
    **{f"table_7_thing_stages_{n}": {**NAIVE, "NUM_STAGES.THING": n} for n in (1, 2, 3, 4)},
    **{f"table_8_stuff_stages_{n}": {**NAIVE, "NUM_STAGES.STUFF": n} for n in (1, 2, 3, 4)},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_changes_what_its_row_says_and_nothing_else(name):
    full = dict(_leaves(get_config("COCO/spatialflow_R_50_20e.yaml")))
    expected = {f"MODEL.SPATIALFLOW.{key}": value for key, value in ABLATIONS[name].items()}
    expected = {key: value for key, value in expected.items() if full[key] != value}
    assert differences(f"COCO/ablations/{name}.yaml", "COCO/spatialflow_R_50_20e.yaml") == expected
    city = {"table_5": "table_6", "table_9": "table_10"}.get(name[:7])
    if city or name == "naive":
        ours = f"Cityscapes/ablations/{name.replace(name[:7], city) if city else name}.yaml"
        assert differences(ours, "Cityscapes/spatialflow_R_50.yaml") == expected


@pytest.mark.parametrize("value", [1.0, 0.75, 0.5, 0.3, 0.2])
def test_lambda_rows_change_lambda_alone(value):
    changed = differences(
        f"COCO/ablations/table_4_lambda_{value}.yaml", "COCO/ablations/naive_600px.yaml"
    )
    assert changed == {"MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": value}


def test_multi_scale_training_samples_the_papers_range():
    cfg = get_config("COCO/spatialflow_R_101_DCN_20e_ms.yaml")
    assert cfg.MODEL.RESNETS.DEPTH == 101
    resize = PanopticMapper(cfg, True).augmentations.augs[0]
    image = torch.zeros(480, 640, 3, dtype=torch.uint8).numpy()
    sizes = [resize.get_transform(image) for _ in range(300)]
    shorter = {min(t.new_h, t.new_w) for t in sizes}
    assert min(shorter) < 430 and max(shorter) > 1150 and len(shorter) > 100
    assert max(max(t.new_h, t.new_w) for t in sizes) <= 1600


def test_cityscapes_is_scaled_by_half_to_two_and_then_cropped():
    cfg = get_config("Cityscapes/spatialflow_R_50.yaml")
    resize, crop, _ = PanopticMapper(cfg, True).augmentations.augs
    assert isinstance(crop, T.RandomCrop)
    image = torch.zeros(1024, 2048, 3, dtype=torch.uint8).numpy()
    scales = []
    for _ in range(20):
        scaling = resize.get_transform(image)
        scales.append(scaling.new_h / 1024)
        assert scaling.new_w == 2 * scaling.new_h
        scaled = scaling.apply_image(image)
        assert crop.get_transform(scaled).apply_image(scaled).shape == (512, 1024, 3)
    assert 0.5 <= min(scales) < 0.8 and 1.5 < max(scales) <= 2


def test_cityscapes_leaves_its_thing_labels_out_of_the_merge():
    cfg = get_config("Cityscapes/spatialflow_R_101.yaml")
    labels = sorted(c["trainId"] for c in CITYSCAPES_CATEGORIES if c["isthing"])
    assert labels == cfg.MODEL.SEM_SEG_HEAD.THING_LABELS


def test_panoptic_fpn_shares_data_input_and_iterations():
    pairs = {
        "panoptic_fpn/panoptic_fpn_R_50_20e.yaml": "COCO/spatialflow_R_50_20e.yaml",
        "toy/panoptic_fpn_toy.yaml": "toy/spatialflow_toy.yaml",
        "camvid/panoptic_fpn_R_50_GN.yaml": "camvid/spatialflow_R_50_GN.yaml",
    }
    for ours, theirs in pairs.items():
        a, b = get_config(ours), get_config(theirs)
        assert a.MODEL.META_ARCHITECTURE == "PanopticFPN"
        for part in ("DATASETS", "INPUT", "DATALOADER"):
            assert a[part] == b[part]
        for key in ("MAX_ITER", "STEPS", "IMS_PER_BATCH"):
            assert a.SOLVER[key] == b.SOLVER[key]
        for key in ("DEPTH", "NORM"):
            assert a.MODEL.RESNETS[key] == b.MODEL.RESNETS[key]


def test_panoptic_fpn_has_detectron2s_own_settings():
    from detectron2 import model_zoo

    ours = get_config("panoptic_fpn/panoptic_fpn_R_50_20e.yaml").MODEL
    theirs = model_zoo.get_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml").MODEL
    parts = ("FPN", "ANCHOR_GENERATOR", "RPN", "ROI_HEADS", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
    for part in (*parts, "SEM_SEG_HEAD", "PANOPTIC_FPN"):
        # This project has more keys than Detectron2.
        assert {key: ours[part][key] for key in theirs[part]} == theirs[part], part


def test_panoptic_fpn_has_the_papers_loss_weights():
    """The best of Table 2a and 2d."""
    weights = {"": (1.0, 0.5), "Cityscapes/": (0.5, 1.0)}
    for folder, (things, stuff) in weights.items():
        for depth in (50, 101):
            model = get_config(f"panoptic_fpn/{folder}panoptic_fpn_R_{depth}.yaml").MODEL
            assert depth == model.RESNETS.DEPTH
            assert things == model.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT
            assert stuff == model.SEM_SEG_HEAD.LOSS_WEIGHT


def test_rows_of_htc_differ_in_their_backbones_and_the_last_in_its_sizes():
    for name, row in {
        "htc_R_101_20e": {"DEPTH"},
        "htc_X_101_64x4d_20e": {"DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP"},
    }.items():
        changed = set(differences(f"HTC/{name}.yaml", "HTC/htc_R_50_20e.yaml"))
        assert changed == {"MODEL.WEIGHTS", *(f"MODEL.RESNETS.{key}" for key in row)}
    last = differences("HTC/htc_X_101_64x4d_DCN_20e_ms.yaml", "HTC/htc_X_101_64x4d_20e.yaml")
    sizes = {"MIN_SIZE_TRAIN", "MIN_SIZE_TRAIN_SAMPLING", "MAX_SIZE_TRAIN"}
    assert set(last) == {"MODEL.RESNETS.DEFORM_ON_PER_STAGE", *(f"INPUT.{key}" for key in sizes)}


def test_members_of_the_reports_ensemble_are_its_three():
    members = get_config("COCO/ensemble_report.yaml").TEST.ENSEMBLE.MEMBERS
    models = [get_config(member["CONFIG"]).MODEL for member in members]
    names = [model.META_ARCHITECTURE for model in models]
    assert names == ["SpatialFlow", "SpatialFlow", "HybridTaskCascade"]
    assert all(model.RESNETS.DEFORM_ON_PER_STAGE[-1] for model in models)
    assert [model.RESNETS.NUM_GROUPS for model in models] == [1, 64, 64]
    assert models[-1].HTC.COCO_STUFF_LABELS == 183


def test_every_part_is_used():
    used = set()
    for path in config_dir().rglob("*.yaml"):
        bases = yaml.safe_load(path.read_text()).get("_BASE_", [])
        for base in [bases] if isinstance(bases, str) else bases:
            used.add((path.parent / base).resolve())
    parts = set(config_dir().rglob("Base-*.yaml"))
    assert {p.resolve() for p in parts} == {p for p in used if p.name.startswith("Base-")}


def test_parts_load_too():
    for path in config_dir().rglob("Base-*.yaml"):
        load_config(str(path))
