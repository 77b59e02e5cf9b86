"""``spatialflow video``: frames in, a video and JSON lines out, with ids that stay."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spatialflow.data.categories import Categories
from spatialflow.data.run_lengths import encode_masks
from spatialflow.data.segments import segments_as_json
from spatialflow.data.targets import read_panoptic_png
from spatialflow.errors import UsageError, UserError
from spatialflow.evaluation.video import VideoPanopticQuality
from spatialflow.inference.predictor import Predictor
from spatialflow.inference.video import predict_frame
from spatialflow.paths import refuse_overwriting
from spatialflow.saved.predictions import PanopticFolder, read_truth_json
from spatialflow.tracking import FramePrediction, PanopticTracker
from spatialflow.utils.command_parser import CommandParser, add_import_argument
from spatialflow.visualization import draw_panoptic, drawn_segments

from .trained_config import DEFAULT_MODEL, read_config, set_confidence
from .video_files import VideoSink, VideoSource

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

EXAMPLES = """
# the street model that comes with the project; drawn.jsonl has the segments
%(prog)s --input street.mp4 --output drawn.mp4
%(prog)s --webcam --output drawn.mp4 --confidence-threshold 0.6
# frames in a folder, scored with their panoptic PNGs
%(prog)s --input datasets/toy/video --truth datasets/toy/panoptic_video.json \\
  --config-file configs/toy/spatialflow_toy_lite0.yaml --output drawn.mp4
"""


def parser() -> CommandParser:
    """Where frames come from, and where they go."""
    parser = CommandParser(
        prog="spatialflow video",
        examples=EXAMPLES,
        description="Segment a video; ids and colours stay with the object.",
    )
    add_import_argument(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, help="a video file, or a folder of frames")
    add_webcam_argument(source)
    parser.add_argument("--output", type=Path, required=True, help="the video, such as drawn.mp4")
    parser.add_argument(
        "--truth", type=Path, help="panoptic JSON of the frames in their order; VPQ is printed"
    )
    parser.add_argument(
        "--config-file", help=f"config of the weights (default: {DEFAULT_MODEL} with its weights)"
    )
    add_confidence_argument(parser)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def add_webcam_argument(parser: Any) -> None:
    """Add ``--webcam`` to a parser or group."""
    parser.add_argument(
        "--webcam",
        nargs="?",
        type=int,
        const=0,
        metavar="NUMBER",
        help="frames of a webcam, until Ctrl-C (default number: 0)",
    )


def add_confidence_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--confidence-threshold``."""
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="SCORE",
        help="things of lower scores are not shown (default: as the config has it)",
    )


class Truth:
    """The ground truth of a video, frame by frame.

    Args:
        path: a panoptic JSON whose images are the frames in their order, with ids that stay.

    Raises:
        FileNotFoundError, ValueError: see :func:`spatialflow.saved.predictions.read_truth_json`.
    """

    def __init__(self, path: Path) -> None:
        content, self.categories = read_truth_json(str(path))
        self._folder = PanopticFolder(str(path))
        self._annotations = content["annotations"]
        self.quality = VideoPanopticQuality(self.categories.as_json())

    def add(self, frame: int, ids: np.ndarray, described: list[dict[str, Any]]) -> None:
        """Compare with the next frame.

        Raises:
            UserError: there is no ground truth for it.
        """
        if frame >= len(self._annotations):
            raise UserError(f"The video has more frames than --truth, {len(self._annotations)}.")
        annotation = self._annotations[frame]
        truth = read_panoptic_png(self._folder.png(annotation))
        self.quality.add(ids, described, truth, annotation["segments_info"])

    def table(self) -> str:
        """VPQ, and what it is made of."""
        metrics = self.quality.metrics()
        switches = int(metrics.pop("switches"))
        lines = [f"{name:8} {value:6.2f}" for name, value in metrics.items()]
        return "\n".join([*lines, f"identity switches: {switches} in {self.quality.frames} frames"])


def follow(
    source: VideoSource,
    predict: Callable[[np.ndarray], FramePrediction],
    categories: Categories,
    output: Path,
    truth: Truth | None = None,
) -> tuple[int, bool]:
    """Segment, follow, draw and write all frames of a source.

    Args:
        source: the frames; closed at the end.
        predict: the model.
        categories: its classes.
        output: the video; the JSON lines are beside it.
        truth: to compare with.

    Returns:
        The number of frames, and whether it was ended by Ctrl-C.
    """
    tracker = PanopticTracker(categories)
    done = 0
    with ExitStack() as stack:
        stack.enter_context(closing(source))
        sink = stack.enter_context(closing(VideoSink(output, source.rate)))
        lines = stack.enter_context(output.with_suffix(".jsonl").open("w"))
        try:
            for frame in tqdm(source, total=source.length, unit="frame"):
                ids, segments = tracker(frame, predict(frame))
                described = segments_as_json(ids, segments, categories)
                if truth is not None:
                    truth.add(done, ids, described)
                sink.write(draw_panoptic(frame, ids, drawn_segments(segments, categories)))
                lines.write(_line(done, ids, described))
                done += 1
        except KeyboardInterrupt:
            return done, True
    return done, False


def _line(frame: int, ids: np.ndarray, described: list[dict[str, Any]]) -> str:
    masks = encode_masks(ids)
    segments = [{**s, "segmentation": masks[s["id"]]} for s in described]
    return json.dumps({"frame": frame, "segments": segments}, separators=(",", ":")) + "\n"


def follow_video(
    args: argparse.Namespace, source: Path | int, output: Path, truth_file: Path | None = None
) -> int:
    """Follow the objects of a video and say how it went; returns the exit code.

    Args:
        args: ``config_file``, ``confidence_threshold`` and ``opts``.
        source: see :class:`spatialflow.tools.video_files.VideoSource`.
        output: the video.
        truth_file: see :class:`Truth`.
    """
    written = [output, output.with_suffix(".jsonl")]
    read = [p for p in (source, truth_file) if isinstance(p, Path)]
    refuse_overwriting(written, read)
    frames = VideoSource(source)
    truth = None if truth_file is None else Truth(truth_file)
    cfg = read_config(args.config_file, args.opts)
    set_confidence(cfg, args.confidence_threshold)
    predictor = Predictor(cfg)
    output.parent.mkdir(parents=True, exist_ok=True)
    done, interrupted = follow(
        frames, lambda image: predict_frame(predictor, image), predictor.categories, output, truth
    )
    if not done and not interrupted:
        raise UserError(f"{source} has no frame that can be read.")
    print(f"{'Stopped after ' if interrupted else ''}{done} frames, in {output}")
    if truth is not None and done:
        print(truth.table())
    return INTERRUPTED if interrupted else 0


def run(args: argparse.Namespace) -> int:
    """Follow the objects of the video; returns the exit code."""
    if args.truth is not None and args.input is None:
        raise UsageError("--truth is for --input; a webcam's frames have none.")
    source = args.input if args.input is not None else args.webcam
    return follow_video(args, source, args.output, args.truth)
