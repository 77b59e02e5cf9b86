"""Views and ensembles by config: evaluation, single pictures, processes, and what is refused."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import pytest
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from tiny_runs import CONFIG, FPN_CONFIG, tiny_config, tiny_overrides
from torch.nn.parallel import DistributedDataParallel

from spatialflow import Predictor
from spatialflow.config import load_config
from spatialflow.data import register_coco_panoptic
from spatialflow.engine import Trainer, launch
from spatialflow.inference import EnsembleWithTTA, load_model, with_views
from spatialflow.inference.load import _match_classes, _prepare_classes, find_config
from spatialflow.inference.optimized import OptimizedModel
from spatialflow.model_zoo import get_config

TRAIN_NET = Path(__file__).resolve().parents[2] / "train_net.py"
AUG = ["TEST.AUG.ENABLED", "True", "TEST.AUG.SCALES", "[[160, 128], [120, 96]]"]
FPN = "toy/panoptic_fpn_toy.yaml"


def save_random(cfg, path, seed=0):
    torch.manual_seed(seed)
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return str(path)


@pytest.fixture(scope="module")
def folder(toy_datasets, tmp_path_factory):
    """Weights of two SpatialFlows and of a Panoptic FPN."""
    folder = tmp_path_factory.mktemp("members")
    for seed in (0, 1):
        save_random(tiny_config(toy_datasets, folder), folder / f"{seed}.pth", seed)
    save_random(tiny_config(toy_datasets, folder, config=FPN_CONFIG), folder / "fpn.pth")
    return folder


@pytest.fixture
def config(toy_datasets, folder, tmp_path):
    def make(*overrides):
        return tiny_config(
            toy_datasets, tmp_path, overrides=["MODEL.WEIGHTS", folder / "0.pth", *overrides]
        )

    return make


@pytest.fixture
def member(toy_datasets, folder):
    def make(name, **more):
        opts = tiny_overrides(toy_datasets, folder)
        if name == "fpn":
            return {"CONFIG": FPN, "WEIGHTS": str(folder / "fpn.pth"), "OPTS": opts, **more}
        return {"CONFIG": str(CONFIG), "WEIGHTS": str(folder / f"{name}.pth"), "OPTS": opts, **more}

    return make


def image_of(toy_datasets, number=0):
    return cv2.imread(str(toy_datasets / "toy" / "val" / f"{number:05d}.png"))


def scores(cfg):
    Trainer.test(cfg, load_model(cfg))
    (results,) = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text()).values()
    return results


def test_evaluation_with_one_view_is_plain_evaluation(config):
    plain = scores(config())
    one = ["TEST.AUG.ENABLED", True, "TEST.AUG.FLIP", False, "TEST.AUG.SCALES", [[160, 128]]]
    assert scores(config(*one)) == plain
    assert plain["sem_seg"]["mIoU"] > 0 and plain["bbox"]["AP"] is not None
    assert scores(config(*AUG)) != plain


def test_training_evaluates_with_the_views(config):
    cfg = config(*AUG)
    model = build_model(cfg)
    many = with_views(cfg, model)
    assert isinstance(many, EnsembleWithTTA) and with_views(cfg, many) is many
    assert [len(m.views) for m in many.members] == [4]
    assert with_views(config(), model) is model


def test_the_model_of_a_training_process_is_found_in_its_wrapper(config):
    cfg = config(*AUG)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(build_model(cfg))
        assert with_views(cfg, wrapped).members[0].model is wrapped.module
    finally:
        dist.destroy_process_group()


def test_an_ensemble_of_one_is_that_one(config, member):
    alone = scores(config())
    assert scores(config("TEST.ENSEMBLE.MEMBERS", [member("0")])) == alone


@pytest.mark.parametrize("in_turn", [False, True])
def test_other_architectures_take_part(config, member, toy_datasets, in_turn):
    members = [member("0"), member("1", WEIGHT=2.0), member("fpn")]
    cfg = config("TEST.ENSEMBLE.MEMBERS", members, "TEST.ENSEMBLE.ONE_AT_A_TIME", in_turn)
    model = load_model(cfg)
    assert [type(m.model).__name__ for m in model.members] == [
        "SpatialFlow",
        "SpatialFlow",
        "PanopticFPNModel",
    ]
    assert [m.weight for m in model.members] == [1.0, 2.0, 1.0]
    image = image_of(toy_datasets)
    output = Predictor(cfg)(image)
    assert output["panoptic_seg"][0].shape == image.shape[:2]
    parts = [Predictor(config("TEST.ENSEMBLE.MEMBERS", [m]))(image)["sem_seg"] for m in members]
    mean = (parts[0] + 2 * parts[1] + parts[2]) / 4
    torch.testing.assert_close(output["sem_seg"], mean, rtol=1e-4, atol=1e-5)


def test_views_of_members_are_their_own_unless_the_ensemble_has_some(config, member):
    own = member("1")
    own["OPTS"] = [*own["OPTS"], *AUG, "INPUT.FORMAT", "RGB"]
    members = ["TEST.ENSEMBLE.MEMBERS", [member("0"), own]]
    model = load_model(config(*members))
    assert [len(m.views) for m in model.members] == [1, 4]
    assert [m.input_format for m in model.members] == ["BGR", "RGB"]
    views = ["TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", [[160, 128]]]
    assert [len(m.views) for m in load_model(config(*members, *views)).members] == [2, 2]


def renamed_dataset(toy_datasets, tmp_path, name, change):
    """The toy scenes under another name, with changed categories; returns overrides for it."""
    source = toy_datasets / "toy"
    content = json.loads((source / "panoptic_val.json").read_text())
    change(content["categories"])
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(content))
    register_coco_panoptic(name, str(source / "val"), str(source / "panoptic_val"), str(path))
    return ["DATASETS.TEST", f"('{name}',)", "DATASETS.TRAIN", "()"]


@pytest.fixture
def renamed(toy_datasets, tmp_path):
    yield lambda name, change: renamed_dataset(toy_datasets, tmp_path, name, change)
    for name in ("toy_in_other_order", "toy_of_other_names"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_classes_are_matched_by_name(config, member, renamed):
    def swap(categories):
        things = [c for c in categories if c["isthing"]]
        things[0]["name"], things[1]["name"] = things[1]["name"], things[0]["name"]

    other = member("1")
    other["OPTS"] = [*other["OPTS"], *renamed("toy_in_other_order", swap)]
    model = load_model(config("TEST.ENSEMBLE.MEMBERS", [member("0"), other]))
    same, swapped = (m.numbers for m in model.members)
    assert same is None
    assert swapped.things[:2] == [1, 0] and swapped.stuff == sorted(swapped.stuff)


def test_other_classes_are_named(config, member, renamed):
    def rename(categories):
        categories[0]["name"] = "zeppelin"

    other = member("1")
    other["OPTS"] = [*other["OPTS"], *renamed("toy_of_other_names", rename)]
    with pytest.raises(ValueError, match=r"has other \w+ than tiny_val: it lacks .*'zeppelin'"):
        load_model(config("TEST.ENSEMBLE.MEMBERS", [other]))


def test_detectron2s_own_configs_take_part_with_things_only():
    cascade = "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"
    cfg = load_config(find_config(cascade))
    names = _prepare_classes(cfg)
    assert (len(names["things"]), names["stuff"]) == (80, [])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80
    answer = get_config("COCO/spatialflow_R_50_20e.yaml")
    assert _match_classes(answer, cascade, names, predicts_stuff=False) is None
    panoptic = load_config(find_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml"))
    names = _prepare_classes(panoptic)
    assert _match_classes(answer, "Panoptic FPN", names, predicts_stuff=True) is None
    with pytest.raises(ValueError, match="There is no config 'COCO/spatialflow_R50'; did you mean"):
        find_config("COCO/spatialflow_R50")


@pytest.mark.parametrize(
    "entry", ["model.pth", {"CONFIG": "c"}, {"CONFIG": "c", "WEIGHTS": "w", "SCALE": 1}]
)
def test_what_is_no_member_is_shown(config, entry):
    with pytest.raises(ValueError, match=r"MEMBERS: .* is no member. It has CONFIG and WEIGHTS"):
        load_model(config("TEST.ENSEMBLE.MEMBERS", [entry]))


OPTIMIZE = ["TEST.OPTIMIZE.ENABLED", True]


@pytest.mark.parametrize("views", [[], AUG], ids=["plain", "views"])
def test_fast_path_by_config(config, toy_datasets, views):
    image = image_of(toy_datasets)
    expected = Predictor(config(*views))(image)
    fast = Predictor(config(*views, *OPTIMIZE))
    model = fast.model.members[0].model if views else fast.model
    assert isinstance(model, OptimizedModel) and model.dtype is None
    found = fast(image)
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-4, atol=1e-4)
    for name in ("scores", "pred_classes"):
        a, b = (getattr(x["instances"], name) for x in (found, expected))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["1", "fpn"])
def test_fast_members_in_half_precision(config, member, toy_datasets, name):
    fast = member(name)
    fast["OPTS"] = [*fast["OPTS"], *OPTIMIZE, "TEST.OPTIMIZE.DTYPE", "bfloat16"]
    cfg = config("TEST.ENSEMBLE.MEMBERS", [member("0"), fast])
    model = load_model(cfg)
    slow, fast = (m.model for m in model.members)
    assert not isinstance(slow, OptimizedModel) and fast.dtype == torch.bfloat16
    image = image_of(toy_datasets)
    result = Predictor(cfg)(image)
    assert result["sem_seg"].dtype == torch.float32
    assert result["panoptic_seg"][0].shape == image.shape[:2]


def test_unknown_data_type_is_named(config):
    with pytest.raises(ValueError, match=r"DTYPE is one of \['float32', .*, not 'int8'"):
        load_model(config(*OPTIMIZE, "TEST.OPTIMIZE.DTYPE", "int8"))


def test_ensembles_are_not_trained(config, member):
    with pytest.raises(
        ValueError, match=r"TEST\.ENSEMBLE\.MEMBERS: an ensemble is for --eval-only"
    ):
        Trainer(config("TEST.ENSEMBLE.MEMBERS", [member("0")]))


def test_commands_take_both_by_config(toy_datasets, folder, member, tmp_path, monkeypatch):
    opts = [*tiny_overrides(toy_datasets, tmp_path), *AUG]
    opts += ["TEST.ENSEMBLE.MEMBERS", str([member("0"), member("fpn")])]
    command = [str(TRAIN_NET), "--eval-only", "--config-file", str(CONFIG), *opts]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(TRAIN_NET), run_name="__main__")
    assert (tmp_path / "results.json").exists()
    picture = str(toy_datasets / "toy" / "val" / "00000.png")
    demo = str(TRAIN_NET.with_name("demo.py"))
    command = [
        demo,
        "--input",
        picture,
        "--output",
        str(tmp_path / "seen"),
        "--config-file",
        str(CONFIG),
        "--opts",
        *opts,
    ]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(demo, run_name="__main__")
    assert stop.value.code == 0
    assert (tmp_path / "seen" / "00000_panoptic.png").exists()


def evaluate(datasets, output, weights):
    cfg = tiny_config(Path(datasets), Path(output), overrides=["MODEL.WEIGHTS", weights, *AUG])
    Trainer.test(cfg, load_model(cfg))


def test_two_processes_give_the_numbers_of_one(config, folder, toy_datasets, tmp_path):
    one = scores(config(*AUG))
    launch(
        evaluate,
        2,
        args=(str(toy_datasets), str(tmp_path / "two"), str(folder / "0.pth")),
        device="cpu",
    )
    (two,) = json.loads((tmp_path / "two" / "results.json").read_text()).values()
    assert two == one
