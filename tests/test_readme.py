"""README.md and docs/: the code runs, the commands and links are there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import skimage.data
import skimage.io

from spatialflow import cli

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "tests/recordings/README.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def blocks(document: Path, kind: str) -> list[str]:
    """The code blocks of a kind."""
    return [text for found, text in BLOCK.findall(document.read_text()) if found == kind]


@pytest.fixture
def street(tmp_path, monkeypatch):
    """A folder with street.jpg, any photograph."""
    monkeypatch.chdir(tmp_path)
    skimage.io.imsave("street.jpg", skimage.data.coffee(), check_contrast=False)
    return tmp_path


def test_python_of_the_readme_runs(street):
    (code,) = blocks(README, "python")
    exec(compile(code, str(README), "exec"), {})
    assert (street / "drawn.png").stat().st_size > 0


def test_first_command_of_the_readme_runs(street):
    command = next(text for text in blocks(README, "bash") if text.startswith("spatialflow demo"))
    _, name, *arguments = shlex.split(command)
    assert cli.run_command(name, arguments) in (0, None)
    assert (street / "drawn" / "street_panoptic.png").is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_exist_and_their_files_are_there(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for text in blocks(document, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = line.partition(" #")[0].split()
            if words[:1] == ["make"]:
                assert words[1] in targets, line
            if words[:1] == ["spatialflow"]:
                assert words[1] in cli.COMMANDS, line
            configs = [w for w in words if w.startswith("configs/")]
            scripts = [w for w in words if w.endswith(".py") and "/" in w and words[0] == "python"]
            for file in {*configs, *scripts}:
                assert (ROOT / file).is_file(), line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in {slug(heading) for heading in headings}, target


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    words = re.sub(r"[^\w\- ]", "", heading.lower())
    return words.replace(" ", "-")


def test_dockerfile_runs_the_tested_script():
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^RUN (.*)$", text, re.M) == ["sh docker/install.sh"]
    assert f"FROM python:3.{sys.version_info.minor}-" in text or "FROM python:3.13-" in text
