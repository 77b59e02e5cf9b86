"""docs/EXTENDING.md: its files are written and its commands run, on a few toy scenes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from PIL import Image
from tiny_runs import tiny_overrides

from spatialflow import cli
from spatialflow.config import config_dir
from spatialflow.modeling import MERGE_REGISTRY, adapters
from spatialflow.modeling.flows import FLOW_REGISTRY
from spatialflow.tools import executors

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "EXTENDING.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT.read_text(), flags=re.M | re.S)
FILES = {text.split()[1]: text for kind, text in BLOCKS if kind in ("python", "yaml")}
COMMANDS = [text for kind, text in BLOCKS if kind == "bash"]
PROGRAMS = {"python train_net.py": "train", "spatialflow": None}
MEASURED = {"panoptic_seg", "bbox", "segm", "sem_seg"}
PREDICTED = "my_cluster"
EXPECTED = {  # of each extension: a parameter that is its own, and what is measured
    "my_flow": ("subnets.cls.0.flows.stuff.gate.weight", MEASURED),
    "my_backbone": ("backbone.bottom_up.res3.0.0.weight", MEASURED),
    "my_head": ("stuff_head.context.weight", MEASURED),
    "my_model": ("things.weight", MEASURED),
    "my_adapter": ("sem_seg_head.predictor.weight", {"sem_seg"}),
    "my_data": ("detector.cls_score.weight", MEASURED),
}


@pytest.fixture
def workplace(here, toy_datasets, monkeypatch):
    """The current folder with the files of the document, this project's configs, and data."""
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    for registry in (FLOW_REGISTRY, BACKBONE_REGISTRY, META_ARCH_REGISTRY, MERGE_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry))
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))
    for name, text in FILES.items():
        (here / name).write_text(text)
    (here / "configs").symlink_to(config_dir())
    (here / "datasets").mkdir()
    for name in ("toy", "orchard"):
        (here / "datasets" / name).symlink_to(toy_datasets / "toy")
    return here


def keys_in(file):
    """The keys that a YAML file of the document sets, with dots in their names."""

    def names(mapping, prefix=""):
        for key, value in mapping.items():
            yield from (
                names(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
            )

    return set(names(yaml.safe_load(FILES[file])))


def argv_of(line, datasets):
    """The command of a line and its arguments, with a schedule and a model that are tiny."""
    program = next(p for p in PROGRAMS if line.startswith(f"{p} "))
    words = shlex.split(line.removeprefix(program))
    name = PROGRAMS[program] or words.pop(0)
    if "--config-file" in words:
        tiny = tiny_overrides(datasets, Path("unused"), max_iter=1)
        tiny += ["SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", "1"]
        taken = keys_in(words[words.index("--config-file") + 1]) | set(words)
        pairs = zip(tiny[::2], tiny[1::2], strict=True)
        words += [x for pair in pairs if pair[0] not in taken for x in pair]
    return name, [word.replace("toy_panoptic_val", "tiny_val") for word in words]


def test_no_block_is_left_out():
    assert {kind for kind, _ in BLOCKS} == {"python", "yaml", "bash"}
    assert {Path(name).stem for name in FILES} == {*EXPECTED, PREDICTED}
    assert all(any(stem in text for stem in (*EXPECTED, PREDICTED)) for text in COMMANDS)


@pytest.mark.parametrize("stem", EXPECTED)
def test_files_and_commands_of_the_document(workplace, toy_datasets, stem):
    text = "".join(text for text in COMMANDS if stem in text).replace("\\\n", " ")
    for line in filter(lambda line: not line.startswith("#"), text.splitlines()):
        name, argv = argv_of(line, toy_datasets)
        assert cli.run_command(name, argv) == 0, line
    outputs = sorted((workplace / "output").iterdir())
    assert workplace / "output" / stem in outputs
    parameter, measured = EXPECTED[stem]
    for output in outputs:
        assert parameter in torch.load(output / "model_final.pth", weights_only=True)["model"]
        (results,) = json.loads((output / "results.json").read_text()).values()
        assert set(results) == measured
    if stem == "my_flow":
        assert len(list((workplace / "drawn").glob("*_panoptic.png"))) == 3


def test_predictor_and_executor_of_the_document(workplace, monkeypatch):
    monkeypatch.setattr(executors, "EXECUTORS", dict(executors.EXECUTORS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    (text,) = (text for text in COMMANDS if PREDICTED in text)
    words = shlex.split(text.replace("\\\n", " ").removeprefix("spatialflow "))
    assert cli.run_command(words[0], words[1:]) == 0
    content = json.loads((workplace / "predicted" / "panoptic_predictions.json").read_text())
    assert len(content["annotations"]) == 3
