"""What ends in one line and what in a traceback, in this process and in others."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from tiny_runs import CONFIG, tiny_overrides
from torch.utils.data import DataLoader

from spatialflow.cli import main
from spatialflow.config import load_config
from spatialflow.data.targets import read_panoptic_png
from spatialflow.errors import UsageError, UserError, exit_on_user_error, message_for_user
from spatialflow.utils.parallel import in_parallel

ROOT = Path(__file__).resolve().parents[1]
MODELS = """
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from spatialflow.modeling import PanopticModel

def broken():
    return {}["my_key"]

@META_ARCH_REGISTRY.register()
class BreaksInInit(PanopticModel):
    def __init__(self, cfg):
        super().__init__()
        broken()

@META_ARCH_REGISTRY.register()
class BreaksInForward(PanopticModel):
    def __init__(self, cfg):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, batch):
        broken()

@META_ARCH_REGISTRY.register()
class RaisesInForward(BreaksInForward):
    def forward(self, batch):
        raise KeyError("my_key")
"""
NAMES = ("BreaksInInit", "BreaksInForward", "RaisesInForward")


@pytest.fixture(scope="module")
def my_models(tmp_path_factory):
    """A module of models that fail."""
    path = tmp_path_factory.mktemp("mine") / "my_models.py"
    path.write_text(MODELS)
    yield path
    del sys.modules["my_models"]
    for name in NAMES:
        META_ARCH_REGISTRY._obj_map.pop(name)


def train(my_models, datasets, output, name, *options):
    overrides = [*tiny_overrides(datasets, output), "MODEL.META_ARCHITECTURE", name]
    files = ["--import", str(my_models), "--config-file", str(CONFIG)]
    return ["train", *options, *files, *overrides]


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_a_users_layer_are_bugs(my_models, toy_datasets, tmp_path, name):
    with pytest.raises(KeyError, match="my_key"):
        main(train(my_models, toy_datasets, tmp_path, name))


@pytest.mark.parametrize("options", [(), ("--num-gpus", "2")])
def test_the_program_shows_the_traceback_of_a_bug(my_models, toy_datasets, tmp_path, options):
    command = train(my_models, toy_datasets, tmp_path, "BreaksInForward", *options)
    done = subprocess.run(
        [sys.executable, "-m", "spatialflow", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "my_models.py" in done.stderr and "KeyError: 'my_key'" in done.stderr
    assert "error: " not in done.stderr


def test_a_missing_file_is_one_line_in_a_started_process(my_models, toy_datasets, tmp_path):
    command = train(my_models, toy_datasets, tmp_path, "SpatialFlow", "--num-gpus", "2")
    weights = str(tmp_path / "nowhere.pth")
    with pytest.raises(SystemExit) as stop:
        main([*command, "MODEL.WEIGHTS", weights])
    assert stop.value.code == f"error: Weights file {weights} not found; check MODEL.WEIGHTS."


@pytest.fixture
def damaged(toy_datasets, tmp_path):
    """Overrides of a training on a dataset with one PNG whose file is no PNG."""
    overrides = tiny_overrides(toy_datasets, tmp_path / "out")
    pngs = tmp_path / "pngs"
    pngs.mkdir()
    for path in (toy_datasets / "toy" / "panoptic_train").iterdir():
        (pngs / path.name).write_text("no PNG")
    whole = str(toy_datasets / "toy" / "panoptic_train")
    entries = overrides[1].replace(f"'{whole}'", f"'{pngs}'").replace("tiny_", f"{tmp_path.name}_")
    assert str(pngs) in entries
    return [*overrides[2:], "DATASETS.REGISTER", entries, "DATASETS.TEST", "()"] + [
        "DATASETS.TRAIN",
        f"('{tmp_path.name}_train',)",
    ]


@pytest.fixture
def logged():
    """What Detectron2's training loop logs."""
    records, logger = [], logging.getLogger("detectron2.engine.train_loop")
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_file_is_one_line_also_from_a_loaders_worker(damaged, workers, logged):
    overrides = [*damaged, "DATALOADER.NUM_WORKERS", workers]
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config-file", str(CONFIG), *overrides])
    assert stop.value.code.startswith("error: Panoptic PNG ")
    assert stop.value.code.endswith("is no PNG file.")
    (error,) = (record for record in logged if record.levelname == "ERROR")
    assert error.exc_info is None
    assert error.getMessage() == f"Training stopped: {stop.value.code.removeprefix('error: ')}"


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    for command in (
        ["--debug", "score", "absent.json", "--json", "absent.json"],
        ["score", "absent.json", "--json", "absent.json", "--debug"],
        ["train", "--config-file", "absent.yaml", "MODEL.DEVICE", "cpu", "--debug"],
        ["submit", "coco", str(tmp_path), "--algorithm", "mine", "--debug"],
    ):
        with pytest.raises(FileNotFoundError):
            main(command)
        with pytest.raises(SystemExit, match="^error: "):
            main([word for word in command if word != "--debug"])


def caught(function, *args):
    with pytest.raises(Exception) as error:
        function(*args)
    return error.value


def read_absent(path):
    read_panoptic_png(path)


def look_up_absent(key):
    return {}[key]


class Broken(torch.utils.data.Dataset):
    """Fails in a worker as a function does."""

    def __init__(self, function, argument):
        self.function, self.argument = function, argument

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.function(self.argument)


def in_this_process(function, argument):
    function(argument)


def in_a_pool(function, argument):
    list(in_parallel(function, [argument] * 2, workers=2))


def in_a_loader(function, argument):
    list(DataLoader(Broken(function, argument), num_workers=1))


@pytest.mark.parametrize("place", [in_this_process, in_a_pool, in_a_loader])
def test_readers_errors_are_the_users_and_lookups_are_bugs(place):
    assert message_for_user(caught(place, read_absent, "absent.png")) == (
        "Panoptic PNG absent.png not found."
    )
    assert message_for_user(caught(place, look_up_absent, "my_key")) is None


def test_key_errors_have_no_quotation_marks():
    message = message_for_user(caught(load_config, str(CONFIG), ["SOLVER.BASE_LRR", "1"]))
    assert message.startswith("Command line: there is no config key SOLVER.BASE_LRR; did you mean")


def test_detectron2s_readers_speak_to_the_user():
    from detectron2.solver import build_lr_scheduler

    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = "Unheard"
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    assert "Unheard" in message_for_user(caught(build_lr_scheduler, cfg, optimizer))


@pytest.mark.parametrize(
    "function, argument",
    [
        (json.loads, "{"),  # a ValueError of the library
        (torch.zeros(2).reshape, 3),
        (int, "x"),
        (next, iter(())),
    ],
)
def test_what_no_reader_raised_is_a_bug(function, argument):
    assert message_for_user(caught(function, argument)) is None


def test_errors_of_the_system_name_their_file(tmp_path):
    message = message_for_user(caught(open, tmp_path / "absent" / "out.json"))
    assert message == f"[Errno 2] No such file or directory: '{tmp_path / 'absent' / 'out.json'}'"
    assert message_for_user(OSError("without a file")) is None


def test_exit_codes(capsys):
    for error, code in ((UserError("wrong"), "error: wrong"), (UsageError("wrong"), 2)):
        with pytest.raises(SystemExit) as stop, exit_on_user_error():
            raise error
        assert stop.value.code == code
        with pytest.raises(UserError, match="wrong"), exit_on_user_error(debug=True):
            raise error
    assert capsys.readouterr().err == "error: wrong\n"
