"""The measurements: end to end, in batches, stage by stage, merge, view by view, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.utils.events import EventStorage
from torch import nn

from spatialflow.inference import with_views
from spatialflow.inference.optimized import optimize
from spatialflow.model_zoo import get_config
from spatialflow.modeling import SpatialFlow
from spatialflow.modeling.panoptic import MergeSettings, merge_panoptic

from .floors import Rates, count
from .stages import stages_of
from .subjects import (
    CONFIGS,
    STUFF_LABELS,
    calibrate,
    make_image,
    make_instances,
    make_training_input,
)
from .timing import Summary, alternate, median_ratio, peak_memory, seconds

BASELINE = "Panoptic FPN"
MULTI_SCALE_CONFIG = "COCO/spatialflow_R_101_DCN_20e_ms_tta.yaml"
VIEWED_HEIGHT = 480  # of most of COCO's images
FAST = "SpatialFlow, optimized"
BATCH_SIZE = 8
MERGED = 100, (800, 1333)
MERGE_BASELINE = "Detectron2"
Models = Mapping[str, nn.Module]


def end_to_end(models: Models, height: int, device: str, runs: int) -> list[dict[str, Any]]:
    """Times from an image in host memory to its panoptic map, the models in turn.

    Sets the weights for images of this height, see :func:`.subjects.calibrate`.
    """
    image = make_image(height)
    found = {name: calibrate(name, model, image) for name, model in models.items()}
    shown = {**models, **fast_paths(models["SpatialFlow"], device)}
    calls = {name: partial(_infer, model, [image]) for name, model in shown.items()}
    baselines = dict.fromkeys(calls, BASELINE)
    for name, model in models.items():
        calls[f"{name}, bf16 autocast"] = partial(_infer_autocast, model, [image], device)
        baselines[f"{name}, bf16 autocast"] = f"{BASELINE}, bf16 autocast"
    times = alternate(calls, device, runs, warm_up=max(1, runs // 10))
    rows = []
    for name, taken in times.items():
        summary = Summary.of(taken)
        ratio = median_ratio(times[baselines[name]], taken)
        subject = next(x for x in models if name.startswith(x))
        row = {"height": height, "width": image["image"].shape[2], "name": name, **vars(summary)}
        row |= {"frames_per_second": 1 / summary.median, "frame_rate_ratio": ratio}
        rows.append(row | {"against": baselines[name], **found[subject]})
    return rows


def fast_paths(model: SpatialFlow, device: str) -> dict[str, nn.Module]:
    """Optimized: on CUDA in bfloat16 with CUDA graphs; on a CPU in float32 and in bfloat16."""
    if device.startswith("cuda"):
        return {FAST: optimize(model, dtype=torch.bfloat16, compile=True)}
    return {FAST: optimize(model), f"{FAST}, bf16": optimize(model, dtype=torch.bfloat16)}


def by_batch(model: SpatialFlow, height: int, device: str, runs: int) -> list[dict[str, Any]]:
    """Time of an image alone and in a batch, of the default and the fast path."""
    image = make_image(height)
    calibrate("SpatialFlow", model, image)
    rows = []
    for name, subject in {"SpatialFlow": model, **fast_paths(model, device)}.items():
        calls = {n: partial(_infer, subject, [image] * n) for n in (1, BATCH_SIZE)}
        times = alternate(calls, device, runs, warm_up=1)
        alone, together = times[1], [t / BATCH_SIZE for t in times[BATCH_SIZE]]
        row = {"name": name, "height": height, "batch_size": BATCH_SIZE, "runs": runs}
        row |= {"alone": Summary.of(alone).median, "in_batch": Summary.of(together).median}
        rows.append(row | {"throughput_ratio": median_ratio(alone, together)})
    return rows


def by_stage(
    models: Models, height: int, device: str, runs: int, rates: Rates
) -> list[dict[str, Any]]:
    """Time, work and floor of each stage of each model, on the image it is calibrated for."""
    image = make_image(height)
    rows = []
    for name, model in models.items():
        work = {stage: count(function) for stage, function in stages_of(name, model, image)}
        times: dict[str, list[float]] = {stage: [] for stage in work}
        for _ in range(runs):
            for stage, function in stages_of(name, model, image):
                times[stage].append(seconds(function, device))
        for stage, taken in times.items():
            arithmetic, traffic = work[stage].floors(rates)
            row = {"name": name, "stage": stage, **vars(Summary.of(taken))}
            row |= vars(work[stage])
            rows.append(row | {"arithmetic_floor": arithmetic, "traffic_floor": traffic})
    return rows


def by_view(model: SpatialFlow, height: int, device: str, runs: int) -> list[dict[str, Any]]:
    """Time of a view at each scale of the papers' multi-scale testing on COCO.

    A row has the time of one plain view, and of a view where it runs together with its mirror
    image. The scales are for 800 pixels; for other heights they are as much smaller or larger.
    """
    cfg = get_config(CONFIGS["SpatialFlow"], ["MODEL.DEVICE", device])
    cfg.TEST.AUG = get_config(MULTI_SCALE_CONFIG).TEST.AUG
    image = make_image(VIEWED_HEIGHT * height // 800)
    rows = []
    for scale in cfg.TEST.AUG.SCALES:
        longer, shorter = (side * height // 800 for side in scale)
        cfg.TEST.AUG.SCALES = [[longer, shorter]]
        calls = {}
        for flip in (False, True):
            cfg.TEST.AUG.FLIP = flip
            calls[flip] = partial(_infer, with_views(cfg, model), [image])
        times = alternate(calls, device, runs, warm_up=1)
        alone, pair = Summary.of(times[False]), Summary.of([t / 2 for t in times[True]])
        row = {"longer": longer, "shorter": shorter, "runs": runs}
        rows.append(row | {"alone": alone.median, "with_mirror_image": pair.median})
    return rows


def merges(device: str, runs: int) -> list[dict[str, Any]]:
    """Time of the merge alone, of 100 instances at 800 x 1333 that all pass the threshold."""
    count, size = MERGED
    instances = make_instances(count, size).to(device)
    labels = make_training_input(size[0])["sem_seg"][:, :1].expand(size).contiguous().to(device)
    settings = MergeSettings(score_thresh=0.5, overlap_thresh=0.5, stuff_area_limit=4096)
    calls = {
        MERGE_BASELINE: lambda: combine_semantic_and_instance_outputs(
            instances, labels, 0.5, 4096, 0.5
        )
    }
    for name, fill in (("SpatialFlow, no box fill", None), ("SpatialFlow, box fill", 0.6)):
        calls[name] = partial(
            merge_panoptic,
            instances.pred_masks,
            instances.pred_boxes.tensor,
            instances.scores,
            instances.pred_classes,
            labels,
            num_stuff_labels=STUFF_LABELS,
            **vars(replace(settings, box_fill_min_free=fill)),
        )
    times = alternate(calls, device, runs, warm_up=2)
    rows = []
    for name, taken in times.items():
        row = {"name": name, "instances": count, "height": size[0], "width": size[1]}
        row |= vars(Summary.of(taken))
        rows.append(row | {"speed_ratio": median_ratio(times[MERGE_BASELINE], taken)})
    return rows


def training(
    models: Models, height: int, device: str, runs: int, batch_size: int
) -> list[dict[str, Any]]:
    """Time and peak memory of iterations: losses, gradients and SGD at learning rate 0."""
    batch = [make_training_input(height, seed=i) for i in range(batch_size)]
    steps = {name: _training_step(model, batch) for name, model in models.items()}
    times = alternate(steps, device, runs, warm_up=1)
    peaks = {name: peak_memory(step, device) for name, step in steps.items()}
    rows = []
    for name, taken in times.items():
        row = {"height": height, "name": name, "batch_size": batch_size, **vars(Summary.of(taken))}
        row["time_ratio"] = median_ratio(taken, times[BASELINE])
        row["memory_ratio"] = peaks[name] / peaks[BASELINE]
        rows.append(row | {"peak_memory": peaks[name]})
    return rows


def _infer(model: nn.Module, images: list[dict]) -> list[dict]:
    with torch.no_grad():
        return model(images)


def _infer_autocast(model: nn.Module, images: list[dict], device: str) -> list[dict]:
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        return _infer(model, images)


def _training_step(model: nn.Module, batch: list[dict]) -> Callable[[], None]:
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with EventStorage():  # Panoptic FPN writes statistics to it
            sum(model(batch).values()).backward()
        optimizer.step()

    return step
