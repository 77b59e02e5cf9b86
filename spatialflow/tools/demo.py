"""``spatialflow demo`` and ``demo.py``: panoptic pictures of your pictures."""

from __future__ import annotations

import argparse
import glob
import json
import sys
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from spatialflow.data.mapper import read_image
from spatialflow.data.targets import rgb_of_ids
from spatialflow.errors import UsageError, UserError, message_for_user
from spatialflow.inference.predictor import Predictor
from spatialflow.paths import refuse_overwriting
from spatialflow.utils.command_parser import CommandParser, add_import_argument
from spatialflow.utils.files import write_image

from .image_files import images_in, output_names
from .trained_config import DEFAULT_MODEL, read_config, set_confidence
from .video import add_confidence_argument, add_webcam_argument, follow_video

PICTURE, IDS, SEGMENTS = "_panoptic.png", "_ids.png", "_segments.json"
"""What a name of a result ends with."""

EXAMPLES = """
# the street model that comes with the project
%(prog)s --input street.jpg --output drawn
# a config with weights of yours, or without them those that come with the project
%(prog)s --input street.jpg photos/ --output drawn --config-file configs/toy/spatialflow_toy.yaml \\
  --opts MODEL.WEIGHTS output/toy/model_final.pth
# a video, or a webcam until Ctrl-C; `spatialflow video` has more options
%(prog)s --video-input street.mp4 --output drawn
# segments and maps of ids too
%(prog)s --input 'photos/*.png' --output drawn --json --config-file C --opts MODEL.WEIGHTS W
"""


def parser() -> CommandParser:
    """The pictures, a config, and where to write."""
    parser = CommandParser(
        prog="spatialflow demo", examples=EXAMPLES, description="Segment pictures."
    )
    add_import_argument(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="image files, folders of images, or globs")
    source.add_argument("--video-input", type=Path, help="a video file")
    add_webcam_argument(source)
    parser.add_argument(
        "--output", required=True, type=Path, help="folder of the results; of a video also its file"
    )
    parser.add_argument(
        "--config-file",
        help=f"config the weights belong to (default: {DEFAULT_MODEL} with its trained weights)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="also write NAME_segments.json and NAME_ids.png, the map of ids in COCO's coding",
    )
    add_confidence_argument(parser)
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE overrides, last on the line, such as MODEL.WEIGHTS w.pth MODEL.DEVICE cpu",
    )
    return parser


def find_images(inputs: list[str], output: Path) -> list[Path]:
    """Files named by files, folders and globs, each once.

    Args:
        inputs: values of ``--input`` on the command line.
        output: folder of the results; what a folder or glob finds there may be a result.

    Raises:
        FileNotFoundError: an input names nothing.
        ValueError: a folder or glob finds images in the folder of the results.
    """
    results = output.resolve()
    found: dict[Path, None] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = images_in(path)
        else:
            files = [path] if path.is_file() else sorted(map(Path, glob.glob(name, recursive=True)))
        if not files:
            raise FileNotFoundError(f"--input {name}: there is no image.")
        if not path.is_file() and any(file.parent.resolve() == results for file in files):
            raise ValueError(
                f"--input {name} finds images in --output {output}, where the results of a run "
                "would be the images of the next one; give another --output."
            )
        found.update(dict.fromkeys(files))
    return list(found)


def paths_of_results(output: Path, as_json: bool) -> list[str]:
    """The files that :func:`segment` writes."""
    return [f"{output}{ending}" for ending in (PICTURE, *((IDS, SEGMENTS) if as_json else ()))]


def segment(predictor: Predictor, image: np.ndarray, output: Path, as_json: bool) -> None:
    """Write the panoptic picture of an image, and its segments if wanted.

    Args:
        predictor: the model.
        image: (H, W, 3) uint8 in BGR order.
        output: path of the results, to which their endings are added.
        as_json: whether segments and map of ids are wanted.
    """
    result = predictor.panoptic(image)
    write_image(f"{output}{PICTURE}", predictor.draw(image, result))
    if as_json:
        if "panoptic_seg" not in result:
            raise UserError("--json needs segments; this config's model makes instances only.")
        ids = result["panoptic_seg"][0].cpu().numpy()
        write_image(f"{output}{IDS}", rgb_of_ids(ids)[:, :, ::-1])
        segments = predictor.segments(result)
        Path(f"{output}{SEGMENTS}").write_text(json.dumps(segments, indent=2))


def problem_of(
    predictor: Predictor, image_file: Path, output: Path, args: argparse.Namespace
) -> str | None:
    """Read and segment an image; why that failed, or None. See :func:`segment`."""
    try:
        image = read_image(str(image_file), "BGR")
    except (ValueError, OSError) as e:
        return str(e)
    try:
        segment(predictor, image, output, args.json)
    except (RuntimeError, MemoryError, cv2.error) as e:  # such as too little memory for the image
        if args.debug:
            raise
        return f"{image_file} cannot be segmented: {type(e).__name__}: {e} (--debug shows where)"
    except (ValueError, OSError) as e:
        message = message_for_user(e)
        if message is None:  # a bug, which ends the run
            raise
        return f"{image_file} cannot be segmented: {message}"
    return None


def run(args: argparse.Namespace) -> int:
    """Segment the pictures or the video.

    Returns:
        The exit code, 1 when a picture could not be read or segmented.
    """
    if args.input is None:
        return run_video(args)
    images = find_images(args.input, args.output)
    outputs = [args.output / name for name in output_names(images)]
    written = [path for output in outputs for path in paths_of_results(output, args.json)]
    refuse_overwriting(written, images)
    cfg = read_config(args.config_file, args.opts)
    set_confidence(cfg, args.confidence_threshold)
    predictor = Predictor(cfg)
    args.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for image_file, output in tqdm(list(zip(images, outputs, strict=True)), unit="image"):
        problem = problem_of(predictor, image_file, output, args)
        if problem is not None:
            tqdm.write(f"error: {problem}", file=sys.stderr)
            failed += 1
    print(f"{len(images) - failed} of {len(images)} images segmented, in {args.output}")
    return int(failed > 0)


def run_video(args: argparse.Namespace) -> int:
    """Segment a video or the frames of a webcam; returns the exit code."""
    if args.json:
        raise UsageError("--json is for --input; a video always has its segments beside it.")
    source = args.webcam if args.video_input is None else args.video_input
    name = "webcam" if args.video_input is None else args.video_input.stem
    # As in Detectron2's demo a file or a folder.
    output = args.output if args.output.suffix else args.output / f"{name}_panoptic.mp4"
    return follow_video(args, source, output)
