"""``spatialflow submit``: the zip that a benchmark's server takes.

COCO panoptic: ``panoptic_<split>_<algorithm>_results.json`` and a folder of PNGs of that name.
Cityscapes: label ids as a PNG an image (semantic), a text file an image that names a PNG for each
mask (instance), or a JSON and a folder ``cityscapes_panoptic_<split>`` (panoptic). Everything is
checked before it goes into the zip.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import zipfile
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spatialflow.data.targets import read_panoptic_png
from spatialflow.evaluation.cityscapes import write_instances, write_labels
from spatialflow.saved.dataset import DATASET_JSON, SavedDataset
from spatialflow.saved.predictions import PanopticFolder, check_segments, read_predictions_json
from spatialflow.saved.raw_outputs import RawOutputs
from spatialflow.utils.command_parser import CommandParser
from spatialflow.utils.files import atomic_write
from spatialflow.utils.parallel import in_parallel


def pack_panoptic(folder: str, name: str, out: str, workers: int = 1) -> int:
    """Zip panoptic predictions as a JSON and a folder of PNGs.

    Args:
        folder: folder of an evaluation with TEST.SAVE_PREDICTIONS.
        name: name of the JSON (without its extension) and of the folder in the zip.
        out: path of the zip.
        workers: processes that read the PNGs; 1 is this one.

    Returns:
        The number of images.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: images are not predicted or unknown, or a PNG does not fit its segments, its
            image or the categories.
    """
    images = _images(folder)
    predictions = PanopticFolder.of_evaluation(folder)
    content = read_predictions_json(predictions.json)
    annotations = content["annotations"]
    _check_images({a["image_id"] for a in annotations}, images, folder)
    category_ids = {c["id"] for c in content["categories"]}
    for annotation in annotations:
        check_segments(predictions.json, annotation, category_ids)
    check = partial(_check_map, predictions=predictions)
    tasks = [(a, images[a["image_id"]]) for a in annotations]
    pngs = list(_progress(in_parallel(check, tasks, workers), len(tasks)))
    with _new_zip(out) as archive:
        for path, base in pngs:
            archive.write(path, f"{name}/{base}")
        text = json.dumps({"annotations": [_plain(a) for a in annotations]})
        archive.writestr(f"{name}.json", text, zipfile.ZIP_DEFLATED)
    return len(tasks)


def pack_cityscapes(folder: str, task: str, out: str) -> int:
    """Zip label ids or instance masks for Cityscapes' servers.

    Args:
        folder: folder of an evaluation with TEST.SAVE_RAW_OUTPUTS.
        task: "semantic" or "instance".
        out: path of the zip.

    Returns:
        The number of images.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: images are not predicted or unknown, the stuff labels are not Cityscapes' 19
            classes, or a raw output is damaged or not of its image's size.
    """
    raw, images = RawOutputs.open(folder), _images(folder)
    _check_images(set(raw.files), images, folder)
    if not set(raw.thing_ids) < set(raw.stuff_ids):
        raise ValueError(
            f"The stuff labels in {folder} do not include the things, as Cityscapes' do; was it "
            "evaluated on Cityscapes?"
        )
    with _new_zip(out) as archive:
        for image_id in _progress(raw.files, len(raw.files)):
            instances, labels = raw.load(image_id)
            _check_size(labels.shape, images[image_id], raw.files[image_id])
            with tempfile.TemporaryDirectory() as scratch:
                if task == "semantic":
                    write_labels(scratch, image_id, labels.numpy(), raw.stuff_ids)
                else:
                    write_instances(scratch, image_id, instances, raw.thing_ids)
                for path in sorted(Path(scratch).iterdir()):
                    archive.write(path, path.name)
    return len(raw.files)


@contextmanager
def _new_zip(path: str) -> Iterator[zipfile.ZipFile]:
    """A zip that is there once all of it is; PNGs do not get smaller and are stored as they are."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with atomic_write(path, "wb") as f, zipfile.ZipFile(f, "w") as archive:
        yield archive


def _images(folder: str) -> Mapping[Hashable, dict[str, Any]]:
    """Images that must be predicted, from the JSON of the dataset, by id."""
    return SavedDataset.open(os.path.join(folder, DATASET_JSON)).images()


def _check_images(predicted: set, images: Mapping[Hashable, dict], folder: str) -> None:
    lost, unknown = images.keys() - predicted, predicted - images.keys()
    if lost or unknown:
        raise ValueError(
            f"{folder}: {len(lost)} of {len(images)} images are not predicted"
            + f", such as {min(lost, key=str)!r}" * bool(lost)
            + f"; {len(unknown)} predicted images are not the dataset's. Evaluate again."
        )


def _check_map(task: tuple[dict, dict], predictions: PanopticFolder) -> tuple[str, str]:
    """Path of a PNG that fits its segments and image, and its name."""
    annotation, image = task
    path = predictions.png(annotation)
    id_map = read_panoptic_png(path)
    _check_size(id_map.shape, image, path)
    segments = annotation["segments_info"]
    listed, found = [s["id"] for s in segments], set(np.unique(id_map).tolist()) - {0}
    if len(set(listed)) < len(listed) or set(listed) != found:
        raise ValueError(f"{path} and its segments have different ids, or an id is listed twice.")
    return path, annotation["file_name"]


def _check_size(shape: Sequence[int], image: Mapping, path: str) -> None:
    if tuple(shape) != (image["height"], image["width"]):
        raise ValueError(
            f"{path} is {shape[1]}x{shape[0]}, its image {image['width']}x{image['height']}."
        )


def _plain(annotation: Mapping) -> dict:
    """A prediction with nothing but what the servers read."""
    segments = [{k: s[k] for k in ("id", "category_id")} for s in annotation["segments_info"]]
    kept = {k: annotation[k] for k in ("image_id", "file_name")}
    return kept | {"segments_info": segments}


def _progress(items: Iterable, total: int) -> Iterable:
    return tqdm(items, total=total, unit="image")


def run(args: argparse.Namespace) -> None:
    """Write the zip of one of the servers."""
    out, number = args.pack(args)
    print(f"{out}: {number} images, {os.path.getsize(out) / 1e6:.1f} MB")


def _pack_coco(args: argparse.Namespace) -> tuple[str, int]:
    name = f"panoptic_{args.split}_{args.algorithm}_results"
    out = os.path.join(args.output_dir, f"{name}.zip")
    return out, pack_panoptic(args.folder, name, out, args.workers)


def _pack_cityscapes(args: argparse.Namespace) -> tuple[str, int]:
    out = os.path.join(args.output_dir, f"cityscapes_{args.task}_{args.split}.zip")
    if args.task == "panoptic":
        name = f"cityscapes_panoptic_{args.split}"
        return out, pack_panoptic(args.folder, name, out, args.workers)
    return out, pack_cityscapes(args.folder, args.task, out)


EXAMPLES = """
%(prog)s coco output/inference/test_dev --algorithm mine
%(prog)s cityscapes output/inference/cityscapes_fine_panoptic_test --task instance
"""


def parser() -> CommandParser:
    """A server, and its arguments."""
    parser = CommandParser(
        prog="spatialflow submit",
        examples=EXAMPLES,
        description="Check predictions and put them into the zip that a benchmark's server takes. "
        "They come from an evaluation with TEST.SAVE_PREDICTIONS True and, for Cityscapes' "
        "semantic and instance tasks, TEST.SAVE_RAW_OUTPUTS True, on a dataset with ground truth "
        "or of DATASETS.UNANNOTATED.",
    )
    servers = parser.add_subparsers(required=True, metavar="SERVER")
    coco = servers.add_parser(
        "coco",
        help="COCO panoptic",
        examples="%(prog)s output/inference/test_dev --algorithm mine",
    )
    coco.add_argument("--algorithm", required=True, help="name of the algorithm, without spaces")
    coco.set_defaults(pack=_pack_coco, split="test-dev2017")
    cityscapes = servers.add_parser(
        "cityscapes",
        help="Cityscapes, three tasks",
        examples="%(prog)s output/inference/cityscapes_fine_panoptic_test --task instance",
    )
    cityscapes.add_argument("--task", required=True, choices=("semantic", "instance", "panoptic"))
    cityscapes.set_defaults(pack=_pack_cityscapes, split="test")
    for server in (coco, cityscapes):
        server.add_argument("folder", help="OUTPUT_DIR/inference/DATASET of the evaluation")
        server.add_argument("--split", help="(default: %(default)s)")
        server.add_argument("--output-dir", default=".", help="where to write the zip")
        server.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    return parser
