"""The results of a benchmark as Markdown."""

from __future__ import annotations

from typing import Any

from spatialflow.utils.text import table


def as_markdown(results: dict[str, Any]) -> str:
    """Tables of end-to-end times, steps and training, under a line on device and settings.

    Args:
        results: the result of :func:`spatialflow.tools.benchmark.command.measure`.
    """
    parts = [_head(results), _end_to_end(results["end_to_end"]), _batches(results["batches"])]
    parts += [_steps(results), _merges(results["merges"]), _views(results), _training(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def systems_as_markdown(results: dict[str, Any]) -> str:
    """The table of ``--systems`` under a line on device and settings.

    Args:
        results: the result of :func:`spatialflow.tools.benchmark.command.measure_systems`.
    """
    header = ["model", "image", "parameters, M", "G multiply-adds, dense", "G multiply-adds, all"]
    header += ["ms, median [quartiles]", "peak, MB", "detections", "confident"]
    lines = [
        [
            r["name"],
            f"{r['height']}x{r['width']}",
            f"{r['parameters'] / 1e6:.2f}",
            f"{r['dense_multiply_adds'] / 1e9:.1f}",
            f"{r['multiply_adds'] / 1e9:.1f}",
            _milliseconds(r),
            f"{r['peak_memory'] / 1e6:.0f}",
            f"{r['detections']}",
            f"{r['confident']}",
        ]
        for r in results["systems"]
    ]
    note = (
        "Dense is all before regions, by fvcore's counter; all is from image to panoptic map. "
        "Deformable convolutions count for their offsets alone. Weights are random."
    )
    return f"{_head(results)}\n\n{table(lines, header, left=1)}\n\n{note}\n"


def _head(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    return f"{results['date']}, {results['device']}, {results['threads']} threads, {versions}."


def _end_to_end(rows: list[dict]) -> str:
    header = ["model", "image", "ms, median [quartiles]", "frames/s", "frame rate over (1)"]
    header += ["detections", "confident", "mean box, % of image"]
    lines = [
        [
            r["name"],
            f"{r['height']}x{r['width']}",
            _milliseconds(r),
            f"{r['frames_per_second']:.2f}",
            f"{r['frame_rate_ratio']:.2f}",
            f"{r['detections']}",
            f"{r['confident']}",
            f"{100 * r['box_share']:.1f}",
        ]
        for r in rows
    ]
    note = (
        "(1) Median over rounds of the ratio to Panoptic FPN in the same round: with bf16 autocast "
        "to it with bf16 autocast, otherwise to it as Detectron2 has it, in float32. "
        "Weights are random, but for the scale and bias of the class scores, which give all "
        "models as many detections, and as many over the threshold of the merge, as the columns "
        "say."
    )
    return f"{table(lines, header, left=1)}\n\n{note}"


def _batches(rows: list[dict]) -> str:
    header = ["batches", "ms/image alone", "ms/image in the batch", "images/s over one by one"]
    lines = [
        [
            f"{r['name']}, {r['batch_size']} x {r['height']} px",
            f"{1e3 * r['alone']:.1f}",
            f"{1e3 * r['in_batch']:.1f}",
            f"{r['throughput_ratio']:.2f}",
        ]
        for r in rows
    ]
    return table(lines, header, left=1)


def _steps(results: dict[str, Any]) -> str:
    if not results["steps"]:
        return ""
    header = ["step", "ms, median [quartiles]", "G multiply-adds", "MB", "compute bound, ms"]
    header += ["memory bound, ms"]
    lines = [
        [
            f"{r['name']}: {r['step']}",
            _milliseconds(r),
            f"{r['multiply_adds'] / 1e9:.1f}",
            f"{r['bytes'] / 1e6:.0f}",
            f"{1e3 * r['compute_bound']:.1f}",
            f"{1e3 * r['memory_bound']:.1f}",
        ]
        for r in results["steps"]
    ]
    rates = results["rates"]
    note = (
        f"Roofline: a float32 matrix product does {rates['multiply_adds'] / 1e9:.0f} G "
        f"multiply-adds and a copy moves {rates['bytes'] / 1e9:.1f} GB in a second here. MB is "
        "what the operators read and write when they run one by one, each whole tensor once."
    )
    return f"{table(lines, header, left=1)}\n\n{note}"


def _merges(rows: list[dict]) -> str:
    first = rows[0]
    header = [f"merge of {first['instances']} instances, {first['height']}x{first['width']}"]
    header += ["ms, median [quartiles]", "speed ratio"]
    lines = [[r["name"], _milliseconds(r), f"{r['speed_ratio']:.1f}"] for r in rows]
    return table(lines, header, left=1)


def _views(results: dict[str, Any]) -> str:
    if not results["views"]:
        return ""
    name = results["views"][0]["name"]
    header = [f"{name}, view at", "s/view alone", "s/view with its mirror image"]
    lines = [
        [
            f"({r['longer']}, {r['shorter']})",
            f"{r['alone']:.2f}",
            f"{r['with_mirror_image']:.2f}",
        ]
        for r in results["views"]
    ]
    return table(lines, header, left=1)


def _training(results: dict[str, Any]) -> str:
    if not results["training"]:
        return ""
    header = ["training", "batch", "s/iteration, median [quartiles]", "time ratio"]
    header += ["peak, MB", "memory ratio"]
    lines = [
        [
            f"{r['name']}, {r['height']} px",
            f"{r['batch_size']}",
            f"{r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}]",
            f"{r['time_ratio']:.2f}",
            f"{r['peak_memory'] / 1e6:.0f}",
            f"{r['memory_ratio']:.2f}",
        ]
        for r in results["training"]
    ]
    return table(lines, header, left=1)


def _milliseconds(row: dict) -> str:
    return f"{1e3 * row['median']:.1f} [{1e3 * row['low']:.1f}, {1e3 * row['high']:.1f}]"
