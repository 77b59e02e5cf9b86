"""The command ``spatialflow``: its help, what it imports, and modules of the user."""

from __future__ import annotations

import argparse
import contextlib
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import CONFIG, tiny_overrides

import spatialflow
from spatialflow import cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    "docs/GUIDE.md",
    "datasets/README.md",
    "docs/EXPORT.md",
    "docs/PERFORMANCE.md",
    "docs/SCALE.md",
    "docs/RESULTS.md",
)
TORCH_FREE = ("doctor", "predict", "score")


def in_new_process(*arguments, code=""):
    """Run the command in a new Python; code is run behind it."""
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from spatialflow.cli import main
try:
    status = main({[str(a) for a in arguments]!r})
except SystemExit as e:
    status = e.code
{code}
"""
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


def parsers_of(parser):
    """A parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers_of(child)


def commands_in(lines):
    """Complete ``spatialflow NAME ...`` command lines, as lists of arguments behind the first."""
    text = "\n".join(lines).replace("\\\n", " ")
    for line in re.findall(r"^(?:torchrun .*-m )?spatialflow (.*)", text, re.M):
        words = shlex.split(line)
        yield words[: words.index(">")] if ">" in words else words


def parse(words):
    return cli.load_command(words[0]).parser().parse_args(words[1:])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_starts_with_examples_that_are_understood(name):
    for parser in parsers_of(cli.load_command(name).parser()):
        assert parser.prog.split()[:2] == ["spatialflow", name]
        assert parser.format_help().startswith(f"examples:\n  {parser.examples[0]}\n")
        commands = list(commands_in(parser.examples))
        assert commands
        for words in commands:
            parse(words)


def test_help_shows_the_common_options(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["score", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--debug" in printed and "usage: spatialflow score" in printed


def test_commands_of_the_documents_are_understood():
    found = set()
    for name in DOCUMENTS:
        lines = (ROOT / name).read_text().splitlines()
        for words in commands_in(line for line in lines if "..." not in line):
            parse(words)
            found.add(words[0])
    assert {"check", "convert", "heatmap", "convert-checkpoint", "toy"} <= found


@pytest.mark.parametrize("script, name", [("train_net.py", "train"), ("demo.py", "demo")])
def test_scripts_at_the_root_are_commands_under_another_name(monkeypatch, script, name):
    called = []
    monkeypatch.setattr(cli, "run_command", lambda *args, **kwargs: called.append((args, kwargs)))
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert called == [((name,), {"prog": script})]


def test_eval_is_train_with_eval_only():
    assert parse(["eval", "--config-file", "c"]) == parse(
        ["train", "--config-file", "c", "--eval-only"]
    )


def test_the_list_of_commands_imports_nothing_heavy():
    code = "print({'torch', 'numpy', 'detectron2', 'yaml'} & {*sys.modules}, status)"
    done = in_new_process("--help", code=code)
    assert done.stdout.endswith("set() 0\n")
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", done.stdout, re.M)


@pytest.mark.parametrize("name", TORCH_FREE)
def test_commands_that_need_no_torch_do_not_import_it(name):
    done = in_new_process(name, "--help", code="print('torch' in sys.modules, status)")
    assert done.stdout.endswith("False 0\n")


@pytest.mark.parametrize(
    "argv, code, message",
    [
        ([], 2, "commands:"),
        (["--debug"], 2, "commands:"),
        (["scor"], 2, "invalid choice: 'scor'"),
        (["score"], 2, "required: predictions"),
        (["--version"], 0, f"spatialflow {spatialflow.__version__}"),
    ],
)
def test_usage(argv, code, message, capsys):
    try:
        found = cli.main(argv)
    except SystemExit as stop:
        found = stop.code
    assert found == code
    assert message in "".join(capsys.readouterr())


def test_no_other_module_is_a_program():
    modules = {*(ROOT / "spatialflow").rglob("*.py")} - {ROOT / "spatialflow" / "__main__.py"}
    assert modules
    assert not [str(m) for m in modules if "if __name__ ==" in m.read_text()]


def test_missing_package_is_one_message(monkeypatch):
    monkeypatch.delitem(sys.modules, "spatialflow.tools.heatmap", raising=False)
    monkeypatch.delitem(sys.modules, "spatialflow.tools.class_activation", raising=False)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SystemExit, match=r"error: spatialflow heatmap needs cv2.*make install"):
        cli.main(["heatmap", "--help"])


def write_backbone(path, name):
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "from detectron2.modeling import BACKBONE_REGISTRY\n"
        "from spatialflow.modeling.backbone import build_spatialflow_resnet_fpn_backbone\n"
        "@BACKBONE_REGISTRY.register()\n"
        f"def {name}(cfg, input_shape):\n"
        "    return build_spatialflow_resnet_fpn_backbone(cfg, input_shape)\n"
    )


def test_models_of_imported_modules_are_trained_evaluated_and_shown(here, toy_datasets):
    write_backbone(here / "my_file.py", "build_from_file")
    write_backbone(here / "my_package" / "backbone.py", "build_from_package")
    common = ["--config-file", str(CONFIG)]
    overrides = tiny_overrides(toy_datasets, here / "out", max_iter=1)
    overrides += ["SOLVER.STEPS", "()", "DATASETS.TEST", "()"]
    overrides += ["MODEL.BACKBONE.NAME", "build_from_file"]
    cli.main(["train", "--import", "my_file.py", *common, *overrides])
    overrides += ["DATASETS.TEST", "('tiny_val',)", "MODEL.WEIGHTS", "out/model_final.pth"]
    overrides += ["MODEL.BACKBONE.NAME", "build_from_package"]
    modules = ["--import", "my_file.py", "--import", "my_package.backbone"]
    cli.main(["eval", *modules, *common, *overrides])
    assert (here / "out" / "results.json").exists()
    picture = str(toy_datasets / "toy" / "val" / "00000.png")
    files = ["--input", picture, "--output", "drawn"]
    assert cli.main(["demo", *modules, *files, *common, "--opts", *overrides]) == 0
    assert (here / "drawn" / "00000_panoptic.png").exists()


def test_a_name_that_nobody_registered_is_one_message(here, toy_datasets):
    overrides = tiny_overrides(toy_datasets, here / "out")
    overrides += ["MODEL.BACKBONE.NAME", "build_unheard_of"]
    with pytest.raises(SystemExit, match="^error: .*'build_unheard_of' found in 'BACKBONE'.*--imp"):
        cli.main(["train", "--config-file", str(CONFIG), *overrides])


@pytest.mark.parametrize(
    "name, message",
    [
        ("my_absent", "module my_absent not found in"),
        ("my_absent.backbone", "module my_absent not found in"),
        ("my_package.absent", "module my_package.absent not found in"),
        ("my_absent.py", "my_absent.py: file not found"),
        ("json.py", "another module json is imported"),
    ],
)
def test_modules_that_are_not_found_are_one_message(here, name, message):
    (here / "my_package").mkdir()
    (here / "json.py").touch()
    with pytest.raises(SystemExit, match=f"^error: --import .*{message}"):
        cli.main(["train", "--import", name, "--config-file", str(CONFIG)])


@pytest.mark.parametrize("name", ["my_broken", "my_broken.py"])
def test_an_error_in_an_imported_module_keeps_its_traceback(here, name):
    (here / "my_broken.py").write_text("import my_absent")
    for _ in range(2):  # a module that failed is not taken for imported
        with pytest.raises(ModuleNotFoundError, match="my_absent"):
            cli.main(["train", "--import", name, "--config-file", str(CONFIG)])
