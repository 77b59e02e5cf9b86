"""The trained models that come with the project: what their cards say is what they do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import ship_checkpoint
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_runs import tiny_config

from spatialflow import model_zoo
from spatialflow.checkpoint import load_tensors
from spatialflow.cli import run_command
from spatialflow.data import prepare_datasets
from spatialflow.engine import Trainer
from spatialflow.inference import load_model
from spatialflow.model_zoo import shipped
from spatialflow.tools import toy, trained_config

TOY = "toy/spatialflow_toy_lite0.yaml"
CLASS_NAMES = {*toy.THINGS.values(), *toy.STUFF.values()}
BAND = 0.1
"""How far PQ may be from the card's on another machine, in percent."""


@pytest.fixture
def datasets(monkeypatch):
    """Sets the datasets folder; the names registered below it are forgotten again."""
    before = set(DatasetCatalog.list())
    yield lambda folder: monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the folder of checkpoints, in its place."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(shipped.CHECKPOINTS, folder)
    monkeypatch.setattr(shipped, "CHECKPOINTS", folder)
    return folder


def test_the_toy_model_is_there():
    assert TOY in shipped.shipped_configs()


@pytest.mark.parametrize("config", shipped.shipped_configs())
def test_card_and_file(config):
    weights = shipped.shipped_weights(config)
    card = shipped.read_card(weights)
    assert card.config == config in model_zoo.config_names()
    assert weights.stat().st_size <= ship_checkpoint.MAX_BYTES
    assert set(card.licences) == {"code", "weights", "data"} and all(card.licences.values())
    state = load_tensors(str(weights))["model"]
    assert not [k for k, v in state.items() if v.dtype == torch.float32]


@pytest.mark.parametrize("config", shipped.shipped_configs())
def test_pq_is_that_of_the_card(config, datasets, tmp_path, request):
    if config.startswith("toy/"):
        toy.generate(str(tmp_path), train=1, val=60)
        datasets(tmp_path)
    else:
        datasets(request.getfixturevalue("real_camvid").parent)
    cfg = model_zoo.get_config(config, trained=True)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    prepare_datasets(cfg, ("TEST",))
    measured = Trainer.test(cfg, load_model(cfg))["panoptic_seg"]
    card = shipped.read_card(Path(cfg.MODEL.WEIGHTS))
    assert (card.dataset,) == cfg.DATASETS.TEST
    assert measured["PQ"] == pytest.approx(card.results["PQ"], abs=BAND)


def test_model_zoo__trained__no_dataset(datasets, tmp_path):
    datasets(tmp_path)
    model = model_zoo.get(TOY, trained=True, device="cpu")
    state = load_tensors(model_zoo.get_checkpoint_url(TOY))["model"]
    for name, value in model.state_dict().items():
        assert value.dtype != torch.float16
        assert torch.equal(value, state[name].to(value.dtype)), name


@pytest.fixture
def picture(toy_datasets):
    return str(toy_datasets / "toy" / "val" / "00000.png")


def names_in(folder):
    segments = json.loads((folder / "00000_segments.json").read_text())
    assert segments
    return {s["category"] for s in segments}


def test_demo__nothing_named__the_default_model_and_its_class_names(
    datasets, tmp_path, monkeypatch, picture
):
    monkeypatch.setattr(trained_config, "DEFAULT_MODEL", TOY)
    datasets(tmp_path / "none")
    output = tmp_path / "drawn"
    assert run_command("demo", ["--input", picture, "--output", str(output), "--json"]) == 0
    assert (output / "00000_panoptic.png").is_file()
    assert names_in(output) <= CLASS_NAMES


def test_demo__config_alone__its_trained_weights(datasets, tmp_path, picture):
    datasets(tmp_path / "none")
    config = model_zoo.get_config_file(TOY)
    arguments = ["--input", picture, "--output", str(tmp_path), "--json", "--config-file", config]
    assert run_command("demo", arguments) == 0
    assert names_in(tmp_path) <= CLASS_NAMES


@pytest.mark.parametrize(
    "opts, message",
    [
        ([], f"COCO/spatialflow_R_50_20e.yaml, do not come with this version.*{TOY}"),
        (["--opts", "MODEL.WEIGHTS", "w.pth"], "MODEL.WEIGHTS needs the --config-file"),
    ],
)
def test_demo__no_weights_for_the_default(opts, message, monkeypatch, tmp_path, picture, capsys):
    monkeypatch.setattr(trained_config, "DEFAULT_MODEL", "COCO/spatialflow_R_50_20e.yaml")
    with pytest.raises(SystemExit) as stopped:
        run_command("demo", ["--input", picture, "--output", str(tmp_path), *opts])
    said = f"{stopped.value} {capsys.readouterr().err}"
    assert message.partition(".*")[0] in said and message.partition(".*")[2] in said


def no_weights(weights):
    weights.unlink()


def other_weights(weights):
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")


def no_json(weights):
    weights.with_suffix(".json").write_text("{")


def lacking_card(weights):
    weights.with_suffix(".json").write_text('{"config": "toy/spatialflow_toy_lite0.yaml"}')


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            no_weights,
            "Weights file .*spatialflow_toy_lite0.pth not found. Install the project again",
        ),
        (other_weights, "spatialflow_toy_lite0.pth is damaged or is not .*its SHA-256 differs"),
        (no_json, "spatialflow_toy_lite0.json is not valid JSON"),
        (lacking_card, "spatialflow_toy_lite0.json is no card of weights"),
    ],
)
def test_damaged_files_are_named(copied, damage, message):
    damage(copied / "toy" / "spatialflow_toy_lite0.pth")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        model_zoo.get(TOY, trained=True)


def test_other_class_counts_than_the_cards(datasets, tmp_path):
    datasets(tmp_path)
    cfg = model_zoo.get_config(TOY, trained=True)
    cfg.MODEL.RETINANET.NUM_CLASSES = 5
    with pytest.raises(ValueError, match="MODEL.RETINANET.NUM_CLASSES is set to 5"):
        shipped.set_shipped_classes(cfg)


def test_shipping__half_precision_measured_and_described(
    copied, datasets, toy_datasets, tmp_path, monkeypatch
):
    datasets(toy_datasets)
    cfg = tiny_config(toy_datasets, tmp_path / "run")
    weights = tmp_path / "run" / "model_final.pth"
    weights.parent.mkdir(exist_ok=True)
    state = load_tensors(model_zoo.get_checkpoint_url(TOY))["model"]
    torch.save({"model": {k: v.float() for k, v in state.items()}, "iteration": 3}, weights)
    (weights.parent / "config.yaml").write_text(cfg.dump())
    licences = ["--weights-licence", "free", "--data-licence", "none"]
    ship_checkpoint.main(["--config", TOY, "--weights", str(weights), *licences])
    card = shipped.read_card(copied / "toy" / "spatialflow_toy_lite0.pth")
    assert card.seed == cfg.SEED and card.command.endswith(f"SEED {cfg.SEED}")
    assert card.licences == {"code": "Apache-2.0", "weights": "free", "data": "none"}
    assert 0 < card.results["PQ"] <= 100
    assert {c["name"] for c in card.categories} == CLASS_NAMES
    monkeypatch.setattr(ship_checkpoint, "MAX_BYTES", 1000)
    with pytest.raises(SystemExit, match="more than 1000"):
        ship_checkpoint.main(["--config", TOY, "--weights", str(weights), *licences])
    assert shipped.read_card(copied / "toy" / "spatialflow_toy_lite0.pth") == card
