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
from spatialflow.modeling.panoptic import HeuristicMerge

from .calibrate import calibrate
from .floors import Rates, count
from .stages import stages_of
from .subjects import STUFF_LABELS, Subject, make_image, make_instances, make_training_input
from .timing import Summary, alternate, median_ratio, peak_memory

MULTI_SCALE_CONFIG = "COCO/spatialflow_R_101_DCN_20e_ms_tta.yaml"
VIEWED_HEIGHT = 480  # of most of COCO's images
BATCH_SIZE = 8
MERGED = 100, (800, 1333)
MERGE_BASELINE = "Detectron2"
Subjects = Mapping[str, Subject]


def end_to_end(
    subjects: Subjects, baseline: str, height: int, device: str, runs: int
) -> list[dict[str, Any]]:
    """Times from an image in host memory to its panoptic map, the models in turn.

    Sets the weights for images of this height, see :func:`.calibrate.calibrate`.

    Args:
        subjects: by name; all but the baseline are shown on the fast path too.
        baseline: the name of the one that the others are compared with.
        height, device, runs: of the image, of the models, and how often each is timed.
    """
    image = make_image(height)
    found = {name: calibrate(subject.steps, image) for name, subject in subjects.items()}
    calls, subject_of, baseline_of = {}, {}, {}

    def show(name: str, subject: str, call: Callable[[], Any], against: str = baseline) -> None:
        calls[name], subject_of[name], baseline_of[name] = call, subject, against

    for name, subject in subjects.items():
        show(name, name, partial(_infer, subject.model, [image]))
    for name, subject in subjects.items():
        for fast, model in fast_paths(name, subject, device).items() if name != baseline else ():
            show(fast, name, partial(_infer, model, [image]))
    for name, subject in subjects.items():
        call = partial(_infer_autocast, subject.model, [image], device)
        show(f"{name}, bf16 autocast", name, call, f"{baseline}, bf16 autocast")
    times = alternate(calls, device, runs, warm_up=max(1, runs // 10))
    rows = []
    for name, taken in times.items():
        summary = Summary.of(taken)
        ratio = median_ratio(times[baseline_of[name]], taken)
        row = {"height": height, "width": image["image"].shape[2], "name": name, **vars(summary)}
        row |= {"frames_per_second": 1 / summary.median, "frame_rate_ratio": ratio}
        rows.append(row | {"against": baseline_of[name], **found[subject_of[name]]})
    return rows


def fast_paths(name: str, subject: Subject, device: str) -> dict[str, nn.Module]:
    """Optimized: on CUDA in bfloat16 with CUDA graphs; on a CPU in float32 and in bfloat16."""
    fast = f"{name}, optimized"
    if device.startswith("cuda"):
        return {fast: optimize(subject.steps, dtype=torch.bfloat16, compile=True)}
    return {
        fast: optimize(subject.steps),
        f"{fast}, bf16": optimize(subject.steps, dtype=torch.bfloat16),
    }


def by_batch(
    name: str, subject: Subject, height: int, device: str, runs: int
) -> list[dict[str, Any]]:
    """Time of an image alone and in a batch, of the default and the fast path."""
    image = make_image(height)
    calibrate(subject.steps, image)
    rows = []
    for shown, model in {name: subject.model, **fast_paths(name, subject, device)}.items():
        calls = {n: partial(_infer, model, [image] * n) for n in (1, BATCH_SIZE)}
        times = alternate(calls, device, runs, warm_up=1)
        alone, together = times[1], [t / BATCH_SIZE for t in times[BATCH_SIZE]]
        row = {"name": shown, "height": height, "batch_size": BATCH_SIZE, "runs": runs}
        row |= {"alone": Summary.of(alone).median, "in_batch": Summary.of(together).median}
        rows.append(row | {"throughput_ratio": median_ratio(alone, together)})
    return rows


def by_stage(
    subjects: Subjects, height: int, device: str, runs: int, rates: Rates
) -> list[dict[str, Any]]:
    """Time, work and floor of each step of each model, on the image it is calibrated for."""
    image = make_image(height)
    rows = []
    for name, subject in subjects.items():
        stages = stages_of(subject.steps, image)
        times = alternate(stages, device, runs, warm_up=1)
        for stage, taken in times.items():
            work = count(stages[stage])
            arithmetic, traffic = work.floors(rates)
            row = {"name": name, "stage": stage, **vars(Summary.of(taken)), **vars(work)}
            rows.append(row | {"arithmetic_floor": arithmetic, "traffic_floor": traffic})
    return rows


def by_view(
    name: str, subject: Subject, height: int, device: str, runs: int
) -> list[dict[str, Any]]:
    """Time of a view at each scale of the papers' multi-scale testing on COCO.

    A row has the time of one plain view, and of a view where it runs together with its mirror
    image. The scales are for 800 pixels; for other heights they are as much smaller or larger.
    """
    cfg = get_config(MULTI_SCALE_CONFIG, ["MODEL.DEVICE", device])
    image = make_image(VIEWED_HEIGHT * height // 800)
    rows = []
    for scale in cfg.TEST.AUG.SCALES:
        longer, shorter = (side * height // 800 for side in scale)
        cfg.TEST.AUG.SCALES = [[longer, shorter]]
        calls = {}
        for flip in (False, True):
            cfg.TEST.AUG.FLIP = flip
            calls[flip] = partial(_infer, with_views(cfg, subject.steps), [image])
        times = alternate(calls, device, runs, warm_up=1)
        alone, pair = Summary.of(times[False]), Summary.of([t / 2 for t in times[True]])
        row = {"name": name, "longer": longer, "shorter": shorter, "runs": runs}
        rows.append(row | {"alone": alone.median, "with_mirror_image": pair.median})
    return rows


def merges(device: str, runs: int) -> list[dict[str, Any]]:
    """Time of the merge alone, of 100 instances at 800 x 1333 that all pass the threshold."""
    count, size = MERGED
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
        row |= vars(Summary.of(taken))
        rows.append(row | {"speed_ratio": median_ratio(times[MERGE_BASELINE], taken)})
    return rows


def training(
    subjects: Subjects, baseline: str, height: int, device: str, runs: int, batch_size: int
) -> list[dict[str, Any]]:
    """Time and peak memory of iterations: losses, gradients and SGD at learning rate 0."""
    batch = [make_training_input(height, seed=i) for i in range(batch_size)]
    steps = {name: _training_step(subject.model, batch) for name, subject in subjects.items()}
    times = alternate(steps, device, runs, warm_up=1)
    peaks = {name: peak_memory(step, device) for name, step in steps.items()}
    rows = []
    for name, taken in times.items():
        row = {"height": height, "name": name, "batch_size": batch_size, **vars(Summary.of(taken))}
        row["time_ratio"] = median_ratio(taken, times[baseline])
        row["memory_ratio"] = peaks[name] / peaks[baseline]
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
