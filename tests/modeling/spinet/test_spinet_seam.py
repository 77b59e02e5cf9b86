"""SPINet by the ways that every panoptic model goes: training, evaluation, views, ensembles."""

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
from spatialflow.saved.raw_outputs import RawOutputs

SPINET = CONFIG.with_name("spinet_toy.yaml")
SMALL = ["MODEL.SPINET.FILTER_CHANNELS", 32, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 20]
FLIPPED = ["TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", [[160, 128], [120, 96]]]


@pytest.fixture(scope="module")
def weights(toy_datasets, tmp_path_factory):
    """Path of the weights after some steps."""
    output = tmp_path_factory.mktemp("spinet")
    _, rows = run(tiny_config(toy_datasets, output, 4, SMALL, SPINET))
    assert {"loss_cls", "loss_mask", "loss_sem_seg", "loss_triplet"} <= set(rows[0])
    return output / "model_final.pth"


@pytest.fixture
def config(toy_datasets, weights, tmp_path):
    def make(*overrides):
        own = [*SMALL, "MODEL.WEIGHTS", weights, *overrides]
        return tiny_config(toy_datasets, tmp_path, overrides=own, config=SPINET)

    return make


@pytest.fixture
def image(toy_datasets):
    return cv2.imread(str(toy_datasets / "toy" / "val" / "00000.png"))


def test_evaluation_saved_outputs_and_sweep(config, tmp_path):
    cfg = config("TEST.SAVE_PREDICTIONS", True, "TEST.SAVE_RAW_OUTPUTS", True)
    results = Trainer.test(cfg, load_model(cfg))
    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg"]
    folder, rows = tmp_path / "inference" / "tiny_val", tmp_path / "rows.json"
    assert RawOutputs.open(str(folder)).merge.box_fill_min_free is None
    command = [str(folder), "--workers", "1", "--json-out", str(rows)]
    run_command("sweep", [*command, "--score-thresh", "0.45", "0.9"])
    (own,) = (row for row in json.loads(rows.read_text()) if row["is_config"])
    assert own["PQ"] == pytest.approx(results["panoptic_seg"]["PQ"], abs=1e-9)


def test_views(config, image):
    both = load_model(config(*FLIPPED))
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    plain, mirrored = (both([{"image": x}])[0] for x in (pixels, pixels.flip(-1)))
    torch.testing.assert_close(mirrored["sem_seg"].flip(-1), plain["sem_seg"], rtol=0, atol=1e-4)
    assert len(plain["instances"]) == len(mirrored["instances"]) > 0


def test_one_view_is_the_model_alone(config, image):
    one = ["TEST.AUG.ENABLED", True, "TEST.AUG.FLIP", False, "TEST.AUG.SCALES", [[160, 128]]]
    alone, view = Predictor(config())(image), Predictor(config(*one))(image)
    torch.testing.assert_close(view["sem_seg"], alone["sem_seg"])


def test_ensemble_with_spatialflow(config, toy_datasets, weights, tmp_path, image):
    opts = tiny_overrides(toy_datasets, tmp_path)
    other = str(tmp_path / "spatialflow.pth")
    model = Trainer.build_model(tiny_config(toy_datasets, tmp_path))
    torch.save({"model": model.state_dict()}, other)
    members = [
        {"CONFIG": str(SPINET), "WEIGHTS": str(weights), "OPTS": [*opts, *SMALL]},
        {"CONFIG": str(CONFIG), "WEIGHTS": other, "OPTS": opts},
    ]
    found = Predictor(config("TEST.ENSEMBLE.MEMBERS", members))(image)
    assert found["instances"].pred_masks.shape[1:] == image.shape[:2]
    assert len(found["instances"]) > 0 and "panoptic_seg" in found


def test_class_layers(config, weights):
    keys = ("MODEL.CLASS_LAYERS.REINIT", "MODEL.CLASS_LAYERS.TRAIN_ONLY")
    trainer = Trainer(config(*(x for key in keys for x in (key, True)), "DATASETS.TEST", ()))
    trainer.resume_or_load(resume=False)
    saved = torch.load(weights, weights_only=True)["model"]
    for name, parameter in trainer.model.named_parameters():
        own = name.startswith(("filter_sampling.class_score.", "stuff_filters"))
        assert parameter.requires_grad == own, name
        assert torch.equal(parameter, saved[name]) != own, name
