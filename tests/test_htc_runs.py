"""HTC goes the whole way: training, evaluation, sweeps, ensembles, the fast path, the benchmark."""

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
from spatialflow.modeling import HeuristicMerge
from spatialflow.saved.raw_outputs import RawOutputs
from spatialflow.tools.benchmark.floors import Rates
from spatialflow.tools.benchmark.measure import by_step, training
from spatialflow.tools.benchmark.subjects import build

HTC = CONFIG.with_name("htc_toy.yaml")
COCO_STUFF = ["MODEL.HTC.COCO_STUFF_LABELS", 183]
FEW_REGIONS = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16]
FLIPPED = ["TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", [[160, 128]]]
SAVE = ["TEST.SAVE_PREDICTIONS", True, "TEST.SAVE_RAW_OUTPUTS", True]
LOW_SCORES = ["MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.02]
ITERATIONS = 12


@pytest.fixture(scope="module")
def trained(toy_datasets, tmp_path_factory):
    """Path of the weights after a short training, and its losses."""
    output = tmp_path_factory.mktemp("htc")
    schedule = ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.003, "SOLVER.STEPS", ()]
    cfg = tiny_config(
        toy_datasets, output, ITERATIONS, [*schedule, *FEW_REGIONS, *LOW_SCORES], config=HTC
    )
    _, rows = run(cfg)
    return output / "model_final.pth", rows


@pytest.fixture
def config(toy_datasets, trained, tmp_path):
    """Function from overrides to the config of the trained model."""

    def make(*overrides):
        own = ["MODEL.WEIGHTS", trained[0], *LOW_SCORES, *overrides]
        return tiny_config(toy_datasets, tmp_path, overrides=own, config=HTC)

    return make


@pytest.fixture
def image(toy_datasets):
    return cv2.imread(str(toy_datasets / "toy" / "val" / "00000.png"))


def test_it_trains_and_is_measured(trained):
    weights, rows = trained
    first, last = (sum(row["total_loss"] for row in part) for part in (rows[:3], rows[-3:]))
    assert last < 0.8 * first
    (results,) = json.loads((weights.parent / "results.json").read_text()).values()
    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg"]
    assert results["sem_seg"]["mIoU"] > 5


def test_its_outputs_are_saved_and_swept(config, tmp_path):
    cfg = config(*SAVE)
    results = Trainer.test(cfg, load_model(cfg))["panoptic_seg"]
    folder = tmp_path / "inference" / "tiny_val"
    merge = RawOutputs.open(str(folder)).merge
    assert isinstance(merge, HeuristicMerge)
    assert merge.box_fill_min_free is None and merge.score_thresh == 0.02
    rows = tmp_path / "rows.json"
    command = [str(folder), "--workers", "1", "--json-out", str(rows)]
    run_command("sweep", [*command, "--score-thresh", "0.99"])
    table = {row["score_thresh"]: row for row in json.loads(rows.read_text())}
    assert [t for t, row in table.items() if row["is_config"]] == [0.02]
    for name in ("PQ", "PQ_th", "PQ_st"):
        assert table[0.02][name] == pytest.approx(results[name], abs=1e-9)
    assert table[0.99]["PQ_th"] == 0


def test_member_of_an_ensemble(config, toy_datasets, trained, tmp_path, image):
    """As a panoptic model it votes on stuff, with COCO-stuff's labels on things alone."""
    opts = tiny_overrides(toy_datasets, tmp_path)
    spatialflow, coco_stuff = str(tmp_path / "spatialflow.pth"), str(tmp_path / "coco_stuff.pth")
    model = Trainer.build_model(tiny_config(toy_datasets, tmp_path))
    torch.save({"model": model.state_dict()}, spatialflow)
    other = tiny_config(toy_datasets, tmp_path, overrides=COCO_STUFF, config=HTC)
    torch.save({"model": Trainer.build_model(other).state_dict()}, coco_stuff)
    members = [
        {"CONFIG": str(CONFIG), "WEIGHTS": spatialflow, "OPTS": opts},
        {"CONFIG": str(HTC), "WEIGHTS": str(trained[0]), "OPTS": opts},
        {"CONFIG": str(HTC), "WEIGHTS": coco_stuff, "OPTS": [*opts, *map(str, COCO_STUFF)]},
    ]
    as_ = ["MODEL.META_ARCHITECTURE", "SpatialFlow"]
    together = config("TEST.ENSEMBLE.MEMBERS", members, *as_)
    found = Predictor(together)(image)
    parts = [Predictor(config("TEST.ENSEMBLE.MEMBERS", [m], *as_))(image) for m in members]
    assert "sem_seg" not in parts[2] and "panoptic_seg" not in parts[2]
    assert len(parts[2]["instances"])
    mean = (parts[0]["sem_seg"] + parts[1]["sem_seg"]) / 2
    torch.testing.assert_close(found["sem_seg"], mean, rtol=1e-4, atol=1e-4)
    assert found["instances"].pred_masks.shape[1:] == image.shape[:2]
    results = Trainer.test(together, load_model(together))
    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg"]


def test_things_alone_are_measured(config, toy_datasets, tmp_path):
    cfg = tiny_config(toy_datasets, tmp_path, overrides=COCO_STUFF, config=HTC)
    results = Trainer.test(cfg, Trainer.build_model(cfg).eval())
    assert list(results) == ["bbox", "segm"]


@pytest.mark.parametrize("views", [[], FLIPPED], ids=["plain", "views"])
def test_fast_path(config, image, views):
    fast = Predictor(config("TEST.OPTIMIZE.ENABLED", True, *views))
    optimized = fast.model.members[0].model if views else fast.model
    assert isinstance(optimized, OptimizedModel)
    found, expected = fast(image), Predictor(config(*views))(image)
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-3, atol=1e-3)
    same = found["panoptic_seg"][0] == expected["panoptic_seg"][0]
    assert same.float().mean() > 0.99


def test_benchmark_times_it(config, tmp_path):
    file = tmp_path / "htc.yaml"
    file.write_text(config().dump())
    models = {"HTC": build(str(file), "cpu")}
    steps = {row["step"] for row in by_step(models, 64, "cpu", 2, Rates(1e9, 1e9))}
    assert {"backbone", "semantic_head", "candidates", "masks", "pasting, merge"} <= steps
    assert [row["name"] for row in training(models, "HTC", 64, "cpu", 2, 1)] == ["HTC"]
