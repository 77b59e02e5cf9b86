"""JSIS-Net from training to every use of a trained model."""

from __future__ import annotations

import json

import cv2
import pytest
import torch
from recorded_run import run
from tiny_runs import CONFIG, tiny_config, tiny_overrides

from spatialflow import Predictor
from spatialflow.cli import run_command
from spatialflow.engine import Trainer
from spatialflow.inference import load_model
from spatialflow.inference.optimized import OptimizedModel
from spatialflow.modeling.jsis_net import PixelwiseMerge
from spatialflow.saved.raw_outputs import RawOutputs
from spatialflow.tools.benchmark.steps import steps_of

JSIS_CONFIG = CONFIG.with_name("jsis_net_toy.yaml")
OWN = ["MODEL.JSIS_NET.CHANNELS", 32, "MODEL.RESNETS.OUT_FEATURES", ["res3"]]
OWN += ["MODEL.RPN.IN_FEATURES", ["res3"], "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 300]
LOW_SCORES = ["MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.02]
LOW_SCORES += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.01]
FLIPPED = ["TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", [[160, 128], [120, 96]]]
SAVE = ["TEST.SAVE_PREDICTIONS", True, "TEST.SAVE_RAW_OUTPUTS", True]
ITERATIONS = 30


@pytest.fixture(scope="module")
def trained(toy_datasets, tmp_path_factory):
    """Path of the weights after a short training, and its losses."""
    output = tmp_path_factory.mktemp("jsis_net")
    schedule = ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.005, "SOLVER.STEPS", ()]
    overrides = [*OWN, *LOW_SCORES, *schedule, "SOLVER.CHECKPOINT_PERIOD", 1000]
    _, rows = run(tiny_config(toy_datasets, output, ITERATIONS, overrides, JSIS_CONFIG))
    return output / "model_final.pth", rows


@pytest.fixture
def config(toy_datasets, trained, tmp_path):
    """Function from overrides to the config of the trained model."""

    def make(*overrides):
        own = [*OWN, *LOW_SCORES, "MODEL.WEIGHTS", trained[0], *overrides]
        return tiny_config(toy_datasets, tmp_path, overrides=own, config=JSIS_CONFIG)

    return make


@pytest.fixture
def image(toy_datasets):
    return cv2.imread(str(toy_datasets / "toy" / "val" / "00000.png"))


def test_it_trains_and_is_measured(trained):
    weights, rows = trained
    first, last = (sum(row["total_loss"] for row in part) for part in (rows[:5], rows[-5:]))
    assert last < 0.8 * first
    (results,) = json.loads((weights.parent / "results.json").read_text()).values()
    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg"]
    assert results["panoptic_seg"]["PQ_st"] > 5 and results["sem_seg"]["mIoU"] > 10


def test_raw_outputs_are_merged_again(config, tmp_path):
    cfg = config(*SAVE)
    results = Trainer.test(cfg, load_model(cfg))["panoptic_seg"]
    folder = tmp_path / "inference" / "tiny_val"
    raw = RawOutputs.open(str(folder))
    assert raw.merge == PixelwiseMerge(score_thresh=0.02, stuff_area_limit=300)
    assert any((raw.load(i)[0].scores > 0.02).any() for i in raw.files)
    report = tmp_path / "rows.json"
    command = [str(folder), "--workers", "1", "--json-out", str(report)]
    run_command("sweep", [*command, "--stuff-area-limit", "0", "20000"])
    rows = {row["stuff_area_limit"]: row for row in json.loads(report.read_text())}
    for name in ("PQ", "PQ_th", "PQ_st"):
        assert rows[300][name] == pytest.approx(results[name], abs=1e-9)
    other = config(*SAVE, "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 20000)
    swept = Trainer.test(other, load_model(other))["panoptic_seg"]
    assert rows[20000]["PQ"] == pytest.approx(swept["PQ"], abs=1e-9)
    with pytest.raises(SystemExit, match="--overlap-thresh is not a setting of .*PixelwiseMerge"):
        run_command("sweep", [*command, "--overlap-thresh", "0.5"])
    run_command("explain", command)
    explained = json.loads(report.read_text())["All"]
    assert explained["PQ"] == pytest.approx(swept["PQ"], abs=1e-9)
    assert explained["best merge"] >= explained["PQ"]


def test_views_of_it(config, image):
    both = load_model(config(*FLIPPED))
    assert isinstance(both.merge, PixelwiseMerge)
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    plain, mirrored = (both([{"image": x}])[0] for x in (pixels, pixels.flip(-1)))
    torch.testing.assert_close(mirrored["sem_seg"].flip(-1), plain["sem_seg"], rtol=0, atol=1e-3)
    same = mirrored["panoptic_seg"][0].flip(-1) == plain["panoptic_seg"][0]
    assert same.float().mean() > 0.98
    only_map = both.panoptic_inference([{"image": pixels}])[0]["panoptic_seg"][0]
    assert torch.equal(only_map, plain["panoptic_seg"][0])


def test_one_view_is_plain_inference(config, image):
    cfg = config("TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", [[160, 128]], "TEST.AUG.FLIP", False)
    one, plain = Predictor(cfg)(image), Predictor(config())(image)
    assert torch.equal(one["panoptic_seg"][0], plain["panoptic_seg"][0])


@pytest.mark.parametrize("answer", ["JSISNet", "SpatialFlow"])
def test_ensemble_with_spatialflow(config, toy_datasets, trained, image, tmp_path, answer):
    """The merge is that of the model that the ensemble's config names."""
    opts = tiny_overrides(toy_datasets, tmp_path)
    spatialflow = str(tmp_path / "spatialflow.pth")
    model = Trainer.build_model(tiny_config(toy_datasets, tmp_path))
    torch.save({"model": model.state_dict()}, spatialflow)
    own = [*opts, *map(str, OWN)]
    members = [
        {"CONFIG": str(JSIS_CONFIG), "WEIGHTS": str(trained[0]), "OPTS": own, "WEIGHT": 3.0},
        {"CONFIG": str(CONFIG), "WEIGHTS": spatialflow, "OPTS": opts},
    ]
    as_ = ["MODEL.META_ARCHITECTURE", answer]
    cfg = config("TEST.ENSEMBLE.MEMBERS", members, *as_)
    found = Predictor(cfg)(image)
    parts = [Predictor(config("TEST.ENSEMBLE.MEMBERS", [m], *as_))(image) for m in members]
    mean = (3 * parts[0]["sem_seg"] + parts[1]["sem_seg"]) / 4
    torch.testing.assert_close(found["sem_seg"], mean, rtol=1e-4, atol=1e-4)
    assert ("pred_mask_probs" in found["instances"].get_fields()) == (answer == "JSISNet")
    assert Trainer.test(cfg, load_model(cfg))["panoptic_seg"]["PQ"] >= 0


@pytest.mark.parametrize("views", [[], FLIPPED], ids=["plain", "views"])
def test_fast_path_of_it(config, image, views):
    fast = Predictor(config("TEST.OPTIMIZE.ENABLED", True, *views))
    optimized = fast.model.members[0].model if views else fast.model
    assert isinstance(optimized, OptimizedModel)
    found, expected = fast(image), Predictor(config(*views))(image)
    same = found["panoptic_seg"][0] == expected["panoptic_seg"][0]
    assert same.float().mean() > 0.99


def test_its_steps_can_be_timed(config, image):
    model = load_model(config())
    steps = steps_of(model, {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())})
    assert {"candidates", "masks", "stuff at its size", "pasting, merge"} <= set(steps)
    for step in steps.values():
        step()


def test_images_of_one_size_whatever_their_shape(config, image):
    cfg = config("INPUT.FIXED_SIZE", (96, 96))
    predictor = Predictor(cfg)
    assert predictor.model_input(image[:50])["image"].shape == (3, 96, 96)
    assert predictor(image[:50])["panoptic_seg"][0].shape == (50, image.shape[1])
    flipped = config("INPUT.FIXED_SIZE", (96, 96), "TEST.AUG.ENABLED", True)
    views = load_model(flipped).members[0].views
    assert [view.flip for view in views] == [False, True]
    assert Trainer.test(cfg, load_model(cfg))["panoptic_seg"]["PQ"] >= 0
