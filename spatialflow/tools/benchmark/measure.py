"""The measurements: end to end, in batches, step by step, merge, view by view, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.utils.events import EventStorage
from torch import nn

from spatialflow.config import load_config
from spatialflow.inference import with_views
from spatialflow.inference.optimized import optimize
from spatialflow.model_zoo import get_config_file
from spatialflow.modeling.panoptic import HeuristicMerge

from .calibrate import calibrate
from .floors import Rates, count
from .steps import steps_of
from .subjects import STUFF_LABELS, BenchmarkModel, make_image, make_instances, make_training_input
from .timing import Summary, alternate, median_ratio, peak_memory

MULTI_SCALE_CONFIG = "COCO/spatialflow_R_101_DCN_20e_ms_tta.yaml"
VIEWED_HEIGHT = 480  # of most of COCO's images
BATCH_SIZE = 8
MERGED = 100
MERGED_SIZE = 800, 1333
MERGE_BASELINE = "Detectron2"
BenchmarkModels = Mapping[str, BenchmarkModel]


def end_to_end(
    models: BenchmarkModels,
    baseline: str,
    height: int,
    device: str,
    runs: int,
    export_to: Path | None = None,
) -> list[dict[str, Any]]:
    """Times from an image in host memory to its panoptic map, the models in turn.

    Sets the weights for images of this height, see :func:`.calibrate.calibrate`.

    Args:
        models: models by name; all but the baseline are also timed on the fast path.
        baseline: name of the model that the others are compared with.
        height: height of the image in pixels.
        device: device of the models.
        runs: number of timed runs of each model.
        export_to: folder for files of the models but the baseline, which are timed too; None:
            none are.
    """
    image = make_image(height)
    found = {name: calibrate(measured.panoptic_model, image) for name, measured in models.items()}
    calls, source_of, baseline_of = {}, {}, {}

    def add(name: str, source: str, call: Callable[[], Any], against: str = baseline) -> None:
        calls[name], source_of[name], baseline_of[name] = call, source, against

    for name, measured in models.items():
        add(name, name, partial(infer, measured.model, [image]))
    for name, measured in models.items():
        for fast, model in fast_paths(name, measured, device).items() if name != baseline else ():
            add(fast, name, partial(infer, model, [image]))
    for name, measured in models.items():
        if export_to is not None and name != baseline:
            for exported, call in _exported(name, measured, image, export_to).items():
                add(exported, name, call)
    for name, measured in models.items() if computes_bfloat16(device) else ():
        call = partial(_infer_autocast, measured.model, [image], device)
        add(f"{name}, bf16 autocast", name, call, f"{baseline}, bf16 autocast")
    times = alternate(calls, device, runs, warm_up=max(1, runs // 10))
    rows = []
    for name, taken in times.items():
        summary = Summary.of(taken)
        ratio = median_ratio(times[baseline_of[name]], taken)
        row = {"height": height, "width": image["image"].shape[2], "name": name, **vars(summary)}
        row |= {"frames_per_second": 1 / summary.median, "frame_rate_ratio": ratio}
        rows.append(row | {"against": baseline_of[name], **found[source_of[name]]})
    return rows


def _exported(
    name: str, measured: BenchmarkModel, image: dict, folder: Path
) -> dict[str, Callable[[], Any]]:
    from .exported import exported_calls  # there, as it needs the extra `export`

    return exported_calls(name, measured, image, folder)


def fast_paths(name: str, measured: BenchmarkModel, device: str) -> dict[str, nn.Module]:
    """Optimized: on CUDA in bfloat16 with CUDA graphs; on a CPU in float32 and in bfloat16, where
    it computes in that."""
    fast = f"{name}, optimized"
    if device.startswith("cuda"):
        return {fast: optimize(measured.panoptic_model, dtype=torch.bfloat16, compile=True)}
    found: dict[str, nn.Module] = {fast: optimize(measured.panoptic_model)}
    if computes_bfloat16(device):
        found[f"{fast}, bf16"] = optimize(measured.panoptic_model, dtype=torch.bfloat16)
    return found


def computes_bfloat16(device: str) -> bool:
    """Whether a device has bfloat16. PyTorch emulates it on other CPUs, for minutes a picture."""
    return device.startswith("cuda") or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def by_batch(
    name: str,
    measured: BenchmarkModel,
    height: int,
    device: str,
    runs: int,
    batch_size: int = BATCH_SIZE,
) -> list[dict[str, Any]]:
    """Time of an image alone and in a batch, of the default and the fast path."""
    image = make_image(height)
    calibrate(measured.panoptic_model, image)
    rows = []
    for shown, model in {name: measured.model, **fast_paths(name, measured, device)}.items():
        calls = {n: partial(infer, model, [image] * n) for n in (1, batch_size)}
        times = alternate(calls, device, runs, warm_up=1)
        alone, together = times[1], [t / batch_size for t in times[batch_size]]
        row = {"name": shown, "height": height, "batch_size": batch_size, "runs": runs}
        row |= {"alone": Summary.of(alone).median, "in_batch": Summary.of(together).median}
        rows.append(row | {"throughput_ratio": median_ratio(alone, together)})
    return rows


def by_step(
    models: BenchmarkModels, height: int, device: str, runs: int, rates: Rates
) -> list[dict[str, Any]]:
    """Time, work and roofline of each step of each model, on the image it is calibrated for."""
    image = make_image(height)
    rows = []
    for name, measured in models.items():
        steps = steps_of(measured.panoptic_model, image)
        times = alternate(steps, device, runs, warm_up=1)
        for step, taken in times.items():
            work = count(steps[step])
            compute, memory = work.roofline(rates)
            row = {"name": name, "step": step, **vars(Summary.of(taken)), **vars(work)}
            rows.append(row | {"compute_bound": compute, "memory_bound": memory})
    return rows


def by_view(
    name: str, measured: BenchmarkModel, height: int, device: str, runs: int
) -> list[dict[str, Any]]:
    """Time of a view at each scale of the papers' multi-scale testing on COCO.

    A row has the time of one plain view, and of a view where it runs together with its mirror
    image. The scales are for 800 pixels; for other heights they are as much smaller or larger.
    """
    cfg = load_config(get_config_file(MULTI_SCALE_CONFIG))
    cfg.MODEL.DEVICE = device
    image = make_image(VIEWED_HEIGHT * height // 800)
    rows = []
    for scale in cfg.TEST.AUG.SCALES:
        longer, shorter = (side * height // 800 for side in scale)
        cfg.TEST.AUG.SCALES = [[longer, shorter]]
        calls = {}
        for flip in (False, True):
            cfg.TEST.AUG.FLIP = flip
            calls[flip] = partial(infer, with_views(cfg, measured.panoptic_model), [image])
        times = alternate(calls, device, runs, warm_up=1)
        alone, pair = Summary.of(times[False]), Summary.of([t / 2 for t in times[True]])
        row = {"name": name, "longer": longer, "shorter": shorter, "runs": runs}
        rows.append(row | {"alone": alone.median, "with_mirror_image": pair.median})
    return rows


def merges(
    device: str, runs: int, count: int = MERGED, size: tuple[int, int] = MERGED_SIZE
) -> list[dict[str, Any]]:
    """Time and peak memory of the merge alone, of instances that all pass the threshold."""
    instances = make_instances(count, size).to(device)
    labels = make_training_input(size[0])["sem_seg"][:, :1].expand(size).contiguous().to(device)
    settings = HeuristicMerge(score_thresh=0.5, overlap_thresh=0.5, stuff_area_limit=4096)
    calls = {
        MERGE_BASELINE: lambda: combine_semantic_and_instance_outputs(
            instances, labels, 0.5, 4096, 0.5
        )
    }
    for name, fill in (("SpatialFlow, no box fill", None), ("SpatialFlow, box fill", 0.6)):
        merge = replace(settings, box_fill_min_free=fill)
        calls[name] = partial(merge.from_labels, instances, labels, STUFF_LABELS)
    times = alternate(calls, device, runs, warm_up=2)
    rows = []
    for name, taken in times.items():
        row = {"name": name, "instances": count, "height": size[0], "width": size[1]}
        row |= vars(Summary.of(taken)) | {"peak_memory": peak_memory(calls[name], device)}
        rows.append(row | {"speed_ratio": median_ratio(times[MERGE_BASELINE], taken)})
    return rows


def training(
    models: BenchmarkModels,
    baseline: str,
    height: int,
    device: str,
    runs: int,
    batch_size: int,
    precision: torch.dtype | None = None,
) -> list[dict[str, Any]]:
    """Time and peak memory of iterations: losses, gradients and SGD at learning rate 0.

    ``precision`` is that of autocast; None: there is none.
    """
    batch = [make_training_input(height, seed=i) for i in range(batch_size)]
    steps = {name: _training_step(m.model, batch, device, precision) for name, m in models.items()}
    times = alternate(steps, device, runs, warm_up=1)
    peaks = {name: peak_memory(step, device) for name, step in steps.items()}
    rows = []
    for name, taken in times.items():
        row = {"height": height, "name": name, "batch_size": batch_size, **vars(Summary.of(taken))}
        row["autocast"] = str(precision).removeprefix("torch.")
        row["time_ratio"] = median_ratio(taken, times[baseline])
        row["memory_ratio"] = peaks[name] / peaks[baseline]
        rows.append(row | {"peak_memory": peaks[name]})
    return rows


def infer(model: nn.Module, images: list[dict]) -> list[dict]:
    """The results of a batch, without gradients."""
    with torch.no_grad():
        return model(images)


def _infer_autocast(model: nn.Module, images: list[dict], device: str) -> list[dict]:
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        return infer(model, images)


def _training_step(
    model: nn.Module, batch: list[dict], device: str, precision: torch.dtype | None
) -> Callable[[], None]:
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with EventStorage():  # Panoptic FPN writes statistics to it
            with torch.autocast(
                torch.device(device).type, precision, enabled=precision is not None
            ):
                loss = sum(model(batch).values())
            loss.backward()
        optimizer.step()

    return step
