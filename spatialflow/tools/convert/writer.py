"""Writing a dataset in COCO panoptic format, in parallel, and so that a run may be killed.

Every PNG carries, as text, its entries of the JSON and a digest of all that it was made from. A PNG
whose digest still holds is taken as it is; so a run goes on where it ended, and labels that have
changed are converted again. Files appear under their names only when they are complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from spatialflow import __version__
from spatialflow.data.categories import Categories
from spatialflow.data.targets import measure_segments, rgb_of_ids
from spatialflow.utils.files import replacing, write_json
from spatialflow.utils.parallel import in_parallel
from spatialflow.utils.text import name_some

_DIGEST, _ENTRY = "spatialflow-digest", "spatialflow-entry"  # keywords of the texts in a PNG


@dataclass(frozen=True)
class Dataset:
    """A dataset that was written: its name, and its paths as DATASETS.REGISTER has them."""

    name: str
    image_root: str
    panoptic_root: str
    panoptic_json: str


@dataclass(frozen=True)
class Job:
    """One image to convert.

    The contents of ``sources`` and the ``details``, which can be written as JSON, are what the PNG
    is made from. ``png`` is its file name; ``products`` are other files that converting writes.
    """

    png: str
    sources: tuple[str, ...]
    details: dict[str, Any]
    products: tuple[str, ...] = ()


@dataclass
class Converted:
    """What became of one image.

    ``image`` is its entry in the JSON; ``ids`` the (H, W) map of segment ids, 0 for void; a segment
    has ``id``, ``category_id`` and ``iscrowd``, its area and box are measured when it is written.
    ``notes`` counts what had to be left out or changed.
    """

    image: dict[str, Any]
    ids: np.ndarray
    segments: list[dict[str, Any]]
    notes: Counter[str] = field(default_factory=Counter)


def write_dataset(
    dataset: Dataset,
    categories: Categories,
    jobs: Sequence[Job],
    convert: Callable[[Job], Converted],
    workers: int,
) -> None:
    """Convert images in parallel and write PNGs and JSON; prints what was left out.

    Args:
        dataset: paths to write to.
        categories: categories of the dataset.
        jobs: one an image; their order is that of the JSON.
        convert: a function that can be pickled.
        workers: number of processes; 1 is this one.

    Raises:
        OSError, ValueError: from ``convert``, or a worker process died.
    """
    os.makedirs(dataset.panoptic_root, exist_ok=True)
    convert_one = partial(_convert_one, convert=convert, folder=dataset.panoptic_root)
    results = in_parallel(convert_one, jobs, workers)
    try:
        entries = list(tqdm(results, desc=dataset.name, total=len(jobs), unit="image"))
    except BrokenProcessPool as e:
        raise OSError(
            "A worker process died, perhaps out of memory. Run the command again with fewer "
            "--workers; what is finished is kept."
        ) from e
    content = {
        "images": [e["image"] for e in entries],
        "annotations": [e["annotation"] for e in entries],
        "categories": categories.as_json(),
    }
    write_json(dataset.panoptic_json, content)
    for note, count in sum((Counter(e["notes"]) for e in entries), Counter()).items():
        print(f"{dataset.name}: {count} {note}.")


def image_entry(path: str) -> dict[str, Any]:
    """Entry of an image in the JSON; the id is the file name without its ending.

    The size is that of the image turned as its EXIF data says.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= _FIRST_ON_ITS_SIDE
    except (OSError, SyntaxError) as e:  # Pillow raises either for damaged files
        raise ValueError(f"Image {path} cannot be read, replace it: {e}") from e
    if turned:
        width, height = height, width
    name = os.path.basename(path)
    id_ = os.path.splitext(name)[0]
    return {"id": id_, "file_name": name, "height": height, "width": width}


_EXIF_ORIENTATION, _FIRST_ON_ITS_SIDE = 0x0112, 5


def list_images(folder: str) -> list[str]:
    """Names of the images in a folder, sorted.

    Raises:
        FileNotFoundError: the folder is missing or has no image.
        ValueError: two images differ in their endings only.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"Image folder {folder} not found.")
    known = Image.registered_extensions()
    names = sorted(n for n in os.listdir(folder) if os.path.splitext(n)[1].lower() in known)
    if not names:
        raise FileNotFoundError(f"Image folder {folder} has no image.")
    stems = Counter(os.path.splitext(n)[0] for n in names)
    twice = next((stem for stem, count in stems.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{folder} has two images named {twice}; remove or rename one of them.")
    return names


def require_files(paths: Sequence[str], kind: str, advice: str) -> None:
    """FileNotFoundError when files are missing, naming the first of them, and what to do."""
    missing = [p for p in paths if not os.path.isfile(p)]
    if missing:
        raise FileNotFoundError(f"{kind} {name_some(missing, 1)} not found. {advice}")


def _convert_one(job: Job, convert: Callable[[Job], Converted], folder: str) -> dict[str, Any]:
    """Entries of one image: ``image``, ``annotation`` and ``notes``."""
    path = os.path.join(folder, job.png)
    digest = _digest(job)
    entry = _finished_entry(path, digest)
    if entry is None or not all(map(os.path.exists, job.products)):
        converted = convert(job)
        entry = {
            "image": converted.image,
            "annotation": {
                "image_id": converted.image["id"],
                "file_name": job.png,
                "segments_info": _measured(converted),
            },
            "notes": converted.notes,
        }
        _write_png(path, converted.ids, digest, entry)
    return entry


def _digest(job: Job) -> str:
    # The version is in it, since a later one may convert differently.
    digest = hashlib.sha256(json.dumps([__version__, job.details]).encode())
    for path in job.sources:
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()


def _finished_entry(path: str, digest: str) -> dict[str, Any] | None:
    """The entries that a PNG carries, or None when there is none or it was made from other data."""
    try:
        with Image.open(path) as image:
            texts = image.info
    except (OSError, SyntaxError):
        return None
    return json.loads(texts[_ENTRY]) if texts.get(_DIGEST) == digest else None


def _write_png(path: str, ids: np.ndarray, digest: str, entry: dict[str, Any]) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text(_DIGEST, digest)
    texts.add_text(_ENTRY, json.dumps(entry))
    with replacing(path) as unfinished:
        Image.fromarray(rgb_of_ids(ids)).save(unfinished, format="PNG", pnginfo=texts)


def _measured(converted: Converted) -> list[dict[str, Any]]:
    """The segments that have a pixel, with area and box."""
    found, areas, boxes = (a.tolist() for a in measure_segments(converted.ids))
    measured = dict(zip(found, zip(areas, boxes, strict=True), strict=True))
    return [
        {**s, "area": measured[s["id"]][0], "bbox": measured[s["id"]][1]}
        for s in converted.segments
        if s["id"] in measured
    ]
