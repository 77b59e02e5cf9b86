"""The parts of ``tools/measure.py``: short functions over the benchmark, the tests and the trainer.

Each takes :class:`Options` and gives rows of one table; times are in seconds, memory in bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch.profiler import ProfilerActivity, profile

from spatialflow.config import load_config
from spatialflow.data import prepare_datasets
from spatialflow.engine import Trainer
from spatialflow.inference import with_views
from spatialflow.model_zoo import get_config_file
from spatialflow.modeling.panoptic import HeuristicMerge
from spatialflow.tools import toy
from spatialflow.tools.benchmark import measure as benchmark
from spatialflow.tools.benchmark.calibrate import calibrate
from spatialflow.tools.benchmark.command import circumstances
from spatialflow.tools.benchmark.floors import measure_rates
from spatialflow.tools.benchmark.subjects import (
    BASELINE,
    CONFIGS,
    STUFF_LABELS,
    build,
    make_image,
    make_instances,
)
from spatialflow.tools.benchmark.systems import SYSTEMS, compare_systems
from spatialflow.tools.benchmark.timing import peak_memory

ROOT = Path(__file__).resolve().parents[1]
QUICK_CONFIGS = {"SpatialFlow": "toy/spatialflow_toy.yaml"}
QUICK_BASELINE = {"Panoptic FPN": "toy/panoptic_fpn_toy.yaml"}
CAMVID_CONFIGS = {
    "spatialflow": "camvid/spatialflow_R_50_GN.yaml",
    "panoptic-fpn": "camvid/panoptic_fpn_R_50_GN.yaml",
}
TTA_LIMIT = 16 * 10**9
"""Bytes that test-time augmentation may need."""
TRIAL_ITERATIONS = 40
"""Of CamVid, to see how many there is time for."""
PRECISIONS = (None, torch.bfloat16, torch.float16)
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """What the parts need: the arguments of the command line."""

    out: Path
    device: str
    quick: bool
    camvid: Path | None
    minutes: float

    @property
    def on_cuda(self) -> bool:
        """Whether a GPU is measured."""
        return self.device.startswith("cuda")

    @property
    def runs(self) -> int:
        """Timed runs of what takes little."""
        return 2 if self.quick else 50

    @property
    def configs(self) -> dict[str, str]:
        """SpatialFlow and Panoptic FPN."""
        return {**QUICK_CONFIGS, **QUICK_BASELINE} if self.quick else {**CONFIGS, **BASELINE}

    def height(self, wanted: int) -> int:
        """Of an image."""
        return 64 if self.quick else wanted


def environment(options: Options) -> Rows:
    """Device, driver, clocks as found, and versions."""
    found = circumstances(options.device)
    row = {"date": found["date"], "device": found["device"], "threads": found["threads"]}
    row |= {"CPUs": os.cpu_count(), "CUDA": torch.version.cuda, **found["versions"]}
    keys = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,clocks.mem"
    keys += ",clocks.applications.graphics,power.draw,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={keys}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as e:
        return [row | {"nvidia-smi": str(e)}]
    values = done.stdout.splitlines()[0].split(", ")
    return [row | dict(zip(keys.split(","), values, strict=False))]


def cuda_tests(options: Options) -> Rows:
    """The tests of the suite that need CUDA."""
    files = [f for f in ROOT.glob("tests/**/test_*.py") if "needs CUDA" in f.read_text()]
    files = [f for f in files if f.stem == "test_batched_painting" or not options.quick]
    return _pytest(options, "tests", *map(str, sorted(files)), "-k", "cuda or amp")


def parity(options: Options) -> Rows:
    """The comparison with recordings of the authors' code, on the device."""
    chosen = ["-k", "anchors_are_bit_identical"] if options.quick else []
    return _pytest(options, "parity", str(ROOT / "tests" / "test_official_parity.py"), *chosen)


def _pytest(options: Options, name: str, *arguments: str) -> Rows:
    report = options.out / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
    environment = {**os.environ, "SPATIALFLOW_PARITY_DEVICE": options.device}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    (options.out / f"{name}.txt").write_text(done.stdout + done.stderr)
    if not report.exists():
        raise RuntimeError(f"pytest ended with {done.returncode}: {options.out / name}.txt")
    suite = ElementTree.parse(report).getroot()[0]
    row = {key: suite.attrib[key] for key in ("tests", "failures", "errors", "skipped", "time")}
    bad = [c for c in suite.iter("testcase") if {"failure", "error"} & {x.tag for x in c}]
    return [row | {"failed": ", ".join(c.attrib["name"] for c in bad)}]


def speed(options: Options, height: int) -> Rows:
    """End to end: eager, bf16, the fast path (on CUDA compiled)."""
    models = {name: build(config, options.device) for name, config in options.configs.items()}
    (baseline,) = BASELINE
    height = options.height(height)
    return benchmark.end_to_end(models, baseline, height, options.device, options.runs)


def systems(options: Options) -> Rows:
    """Parameters, multiply-adds, time and peak memory of the systems of the papers."""
    configs = options.configs if options.quick else SYSTEMS
    height, runs = options.height(800), max(2, options.runs // 5)
    return compare_systems(configs, height, options.device, runs)


def batches(options: Options) -> Rows:
    """An image alone and in a batch of 8."""
    name, config = next(iter(options.configs.items()))
    model, height = build(config, options.device), options.height(400)
    runs, batch_size = max(2, options.runs // 5), 2 if options.quick else benchmark.BATCH_SIZE
    return benchmark.by_batch(name, model, height, options.device, runs, batch_size)


def steps(options: Options) -> Rows:
    """Each step beside the lower bounds by arithmetic and memory."""
    models = {name: build(config, options.device) for name, config in options.configs.items()}
    rates, height = measure_rates(options.device, options.quick), options.height(800)
    for model in models.values():
        calibrate(model.panoptic_model, make_image(height))
    return benchmark.by_step(models, height, options.device, max(2, options.runs // 5), rates)


def merges(options: Options) -> Rows:
    """The merge alone beside Detectron2's."""
    size = (40, 60) if options.quick else benchmark.MERGED_SIZE
    counts = (10, 100, 300)
    rows = [benchmark.merges(options.device, options.runs, n, size) for n in counts]
    return sum(rows, [])


def training(options: Options) -> Rows:
    """Iterations with and without autocast and checkpointing, beside Panoptic FPN's."""
    (name, config), (baseline, baseline_config) = options.configs.items()
    checkpointing = ["MODEL.SPATIALFLOW.CHECKPOINT_SUBNETS", "True"]
    models = {
        name: build(config, options.device),
        f"{name}, checkpointing": build(config, options.device, checkpointing),
        baseline: build(baseline_config, options.device),
    }
    height, runs, rows = options.height(800), 2 if options.quick else 10, []
    # A CPU has no autocast to float16 for all operators.
    on_cpu = PRECISIONS[: 2 if benchmark.computes_bfloat16(options.device) else 1]
    for precision in PRECISIONS if options.on_cuda else on_cpu:
        batch_size = 1 if options.quick else 2
        arguments = (models, baseline, height, options.device, runs, batch_size, precision)
        rows += benchmark.training(*arguments)
    return rows


def launches(options: Options) -> Rows:
    """Kernel launches and host synchronisations of a frame, and of the merge alone."""
    height = options.height(800)
    image = make_image(height)
    calls: dict[str, Callable[[], Any]] = {}
    for name, config in list(options.configs.items())[: 1 if options.quick else None]:
        model = build(config, options.device)
        calibrate(model.panoptic_model, image)
        calls[name] = partial(benchmark.infer, model.model, [image])
        for fast, optimized in benchmark.fast_paths(name, model, options.device).items():
            calls[fast] = partial(benchmark.infer, optimized, [image])
    size = (height, height * 3 // 2)
    labels = torch.zeros(size, dtype=torch.int64, device=options.device)
    for count in (10, 100, 300):
        instances = make_instances(count, size).to(options.device)
        merge = HeuristicMerge(overlap_thresh=0.5).from_labels
        calls[f"merge of {count} instances"] = partial(merge, instances, labels, STUFF_LABELS)
    return [{"name": name, "height": height, **_events(call)} for name, call in calls.items()]


def _events(call: Callable[[], Any]) -> dict[str, int]:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        for _ in range(3):  # CUDA graphs are recorded in the second call
            call()
    with profile(activities=activities) as profiler:
        call()
    counts = {event.key: event.count for event in profiler.key_averages()}

    def total(*prefixes: str) -> int:
        return sum(n for key, n in counts.items() if key.startswith(prefixes))

    return {
        "operators": total("aten::"),
        "kernel_launches": total("cudaLaunch", "cuLaunch"),
        "graph_launches": total("cudaGraphLaunch"),
        "host_synchronisations": total("cudaStreamSynchronize", "cudaEventSynchronize"),
        "scalars_read": total("aten::_local_scalar_dense"),
    }


def tta(options: Options) -> Rows:
    """Peak memory of COCO's multi-scale testing, all scales with their mirror images."""
    cfg = load_config(get_config_file(benchmark.MULTI_SCALE_CONFIG))
    cfg.MODEL.DEVICE, config = options.device, benchmark.MULTI_SCALE_CONFIG
    if options.quick:
        config = QUICK_CONFIGS["SpatialFlow"]
        cfg.TEST.AUG.SCALES = [[150, 100], [180, 120]]
    image, model = make_image(options.height(480)), build(config, options.device).panoptic_model
    calibrate(model, make_image(options.height(800)))
    call = partial(benchmark.infer, with_views(cfg, model), [image])
    peak = peak_memory(call, options.device)
    row = {"scales": str(cfg.TEST.AUG.SCALES), "peak_memory": peak, "limit": TTA_LIMIT}
    return [row | {"within_the_limit": peak <= TTA_LIMIT}]


def camvid(options: Options, model: str) -> Rows:
    """PQ on CamVid's validation images after a fixed number of minutes, with mixed precision."""
    config, root = CAMVID_CONFIGS[model], options.camvid
    if options.quick:
        config = next(c for name, c in options.configs.items() if model[:4] in name.lower()[:12])
        root = None
    elif root is None:
        raise FileNotFoundError("CamVid not found: name its folder with --camvid FOLDER.")
    folder = options.out / f"camvid-{model}"
    iterations = 5  # the first three are not timed
    if not options.quick:
        trial = _train(options, config, root, folder / "trial", TRIAL_ITERATIONS)
        iterations = int(options.minutes * 60 / trial.storage.history("time").median(20))
    trainer = _train(options, config, root, folder, iterations, evaluate=True)
    row = {"config": config, "minutes": options.minutes, "iterations": iterations}
    for name in ("time", "data_time"):
        row[f"{name}_median"] = trainer.storage.history(name).median(iterations)
    latest = trainer.storage.latest()
    return [row | {key: latest[f"panoptic_seg/{key}"][0] for key in ("PQ", "PQ_th", "PQ_st")}]


def _train(
    options: Options,
    config: str,
    root: Path | None,
    output: Path,
    iterations: int,
    evaluate: bool = False,
) -> Trainer:
    """A run on CamVid or, without its folder, on a few toy scenes."""
    name = "camvid" if root else output.name
    if root is None:
        toy.generate(str(output), train=4, val=2)
        root = output / "toy"
    paths = {s: [s, f"panoptic_{s}", f"panoptic_{s}.json"] for s in ("train", "val")}
    entries = [[f"measured_{name}_{s}", *(str(root / p) for p in paths[s])] for s in paths]
    values = {
        "DATASETS.REGISTER": entries,
        "DATASETS.TRAIN": (entries[0][0],),
        "DATASETS.TEST": (entries[1][0],) if evaluate else (),
        "MODEL.DEVICE": options.device,
        "SOLVER.AMP.ENABLED": options.on_cuda,
        "SOLVER.AMP.PRECISION": "bfloat16",
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.WARMUP_ITERS": min(200, iterations // 2),
        "SOLVER.STEPS": (),
        "TEST.EVAL_PERIOD": 0,
        "SEED": 0,
        "OUTPUT_DIR": str(output),
    }
    if options.quick:
        values |= {"SOLVER.IMS_PER_BATCH": 2, "SOLVER.REFERENCE_IMS_PER_BATCH": 2}
        values |= {"DATALOADER.NUM_WORKERS": 0}
    opts = [text for key, value in values.items() for text in (key, str(value))]
    cfg = load_config(get_config_file(config), opts)
    prepare_datasets(cfg)
    output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(cfg)
    trainer.train()
    return trainer
