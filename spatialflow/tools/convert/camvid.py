"""CamVid: the original layout with labels of 32 colours, and the SegNet tutorial's with 12 values.

CamVid labels classes, not instances. Here an instance of a thing is one 8-connected region of its
class: objects of a class that touch are one, and an object that something cuts in two is two.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from spatialflow.data.categories import Categories
from spatialflow.paths import refuse_overwriting

from .compose import NO_LABEL, Object, compose
from .pngs import read_channels, read_values
from .resize import copy_file, limited_size, resize_map, write_resized
from .writer import Converted, Dataset, Job, image_entry, list_images, require_files, write_dataset

SPLITS = ("train", "val", "test")
MAX_SIZE = 480
"""Longer side of the images that ``configs/camvid`` are for, and of the SegNet tutorial's."""
MIN_AREA = 30
"""Regions of a thing with fewer pixels, after resizing, become void."""
THINGS = ("car", "pedestrian", "bicyclist")

# The eleven classes in the order of the tutorial's values, each with the original classes in it
# and its colour. The grouping is that of CamVid's common 11-class form.
_CLASSES = (
    ("sky", ("Sky",), (128, 128, 128)),
    ("building", ("Building", "Bridge", "Wall", "Tunnel", "Archway"), (128, 0, 0)),
    ("pole", ("Column_Pole", "TrafficCone"), (192, 192, 128)),
    ("road", ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"), (128, 64, 128)),
    ("pavement", ("Sidewalk", "ParkingBlock", "RoadShoulder"), (60, 40, 222)),
    ("tree", ("Tree", "VegetationMisc"), (128, 128, 0)),
    ("sign", ("SignSymbol", "Misc_Text", "TrafficLight"), (192, 128, 128)),
    ("fence", ("Fence",), (64, 64, 128)),
    ("car", ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"), (64, 0, 128)),
    ("pedestrian", ("Pedestrian", "Child", "CartLuggagePram", "Animal"), (64, 64, 0)),
    ("bicyclist", ("Bicyclist", "MotorcycleScooter"), (0, 128, 192)),
)
_THING_IDS = tuple(i for i, (name, *_) in enumerate(_CLASSES, start=1) if name in THINGS)
_TUTORIAL_VOID = len(_CLASSES)
_IMAGES, _LABELS, _COLORS = "701_StillsRaw_full", "LabeledApproved_full", "label_colors.txt"
_ADVICE = (
    f"--root names a folder with {_IMAGES}, {_LABELS} and {_COLORS}, or one with train, "
    "trainannot and so on, as the SegNet tutorial has it; see datasets/README.md."
)

ReadLabels = Callable[[str, tuple[int, int]], tuple[np.ndarray, int]]
"""Path of a label PNG and its (height, width) -> (H, W) int32 category ids, ``NO_LABEL`` for void,
and how many pixels have a colour that is no class."""


def convert_camvid(
    root: str, output: str, splits: Sequence[str], max_size: int, workers: int
) -> list[Dataset]:
    """Write ``SPLIT`` (images), ``panoptic_SPLIT`` and ``panoptic_SPLIT.json`` below ``output``.

    These are the names that ``configs/camvid`` have. Category ids are 1 to 11.

    Args:
        root: folder of the dataset in one of its two layouts.
        output: folder to write to, not ``root``.
        splits: some of ``SPLITS``.
        max_size: most pixels of the longer side; larger images and labels are made smaller.
        workers: number of processes.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: a PNG has other values than documented or another size than its image, or
            ``output`` is ``root``.
    """
    refuse_overwriting([output], [root])
    if os.path.isdir(os.path.join(root, _LABELS)):
        read: ReadLabels = partial(_read_colors, label_of=_label_of_color(root))
        find_pairs = _original_pairs
    elif any(os.path.isdir(os.path.join(root, f"{split}annot")) for split in SPLITS):
        read, find_pairs = _read_tutorial, _tutorial_pairs
    else:
        raise FileNotFoundError(f"{root} has no {_LABELS} and no trainannot. {_ADVICE}")
    datasets = []
    for split in splits:
        folder = os.path.join(output, split)
        png_folder = os.path.join(output, f"panoptic_{split}")
        dataset = Dataset(f"camvid_panoptic_{split}", folder, png_folder, f"{png_folder}.json")
        jobs = [_job(*pair, folder, max_size) for pair in find_pairs(root, split)]
        require_files([job.details["labels"] for job in jobs], "Label PNG", _ADVICE)
        os.makedirs(folder, exist_ok=True)
        write_dataset(dataset, _categories(), jobs, partial(_convert, read=read), workers)
        datasets.append(dataset)
    return datasets


def split_of(stem: str) -> str:
    """The split of an image of the original layout, by its recording and frame.

    That of the SegNet tutorial, 367, 101 and 233 images: val is one stretch of 0016E5, test is
    Seq05VD and the second half of 0001TP.

    Args:
        stem: file name without its ending, such as ``0016E5_07959`` or ``Seq05VD_f00000``.

    Raises:
        ValueError: it is no such name.
    """
    match = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)", stem)
    if match is None:
        raise ValueError(
            f"Image {stem} has no name of CamVid's, RECORDING_FRAME, so its split is not known. "
            f"Remove it. {_ADVICE}"
        )
    recording, frame = match[1], int(match[2])
    if recording == "Seq05VD" or (recording == "0001TP" and frame >= 8550):
        return "test"
    return "val" if recording == "0016E5" and 7959 <= frame <= 8159 else "train"


def _categories() -> Categories:
    return Categories.from_json(
        [
            {"id": i, "name": name, "isthing": int(name in THINGS), "color": color}
            for i, (name, _, color) in enumerate(_CLASSES, start=1)
        ]
    )


def _original_pairs(root: str, split: str) -> list[tuple[str, str]]:
    """Paths of image and labels of each image of a split."""
    folder = os.path.join(root, _IMAGES)
    stems = {name: os.path.splitext(name)[0] for name in list_images(folder)}
    pairs = [
        (os.path.join(folder, name), os.path.join(root, _LABELS, f"{stem}_L.png"))
        for name, stem in stems.items()
        if split_of(stem) == split
    ]
    if not pairs:
        raise FileNotFoundError(f"{folder} has no image of the split {split}; name other --splits.")
    return pairs


def _tutorial_pairs(root: str, split: str) -> list[tuple[str, str]]:
    folder = os.path.join(root, split)
    labels = os.path.join(root, f"{split}annot")
    return [
        (os.path.join(folder, name), os.path.join(labels, f"{os.path.splitext(name)[0]}.png"))
        for name in list_images(folder)
    ]


def _job(image: str, labels: str, folder: str, max_size: int) -> Job:
    name = os.path.basename(image)
    output = os.path.join(folder, name)
    details = {"image": image, "labels": labels, "output": output, "max_size": max_size}
    return Job(f"{os.path.splitext(name)[0]}.png", (labels, image), details, (output,))


def _convert(job: Job, read: ReadLabels) -> Converted:
    d = job.details
    image = image_entry(d["image"])
    original = (image["height"], image["width"])
    labels, unknown = read(d["labels"], original)
    size = limited_size(*original, d["max_size"])
    if size == original:
        copy_file(d["image"], d["output"])
    else:
        write_resized(d["image"], size, d["output"])
        labels = resize_map(labels, size)
    image |= {"height": size[0], "width": size[1]}
    object_map, objects, too_small = _connected_objects(labels)
    ids, segments = compose(labels, object_map, objects, _THING_IDS, uncovered="void")
    counts = {
        f"regions of things below {MIN_AREA} pixels, which became void": too_small,
        f"pixels of colours that {_COLORS} does not have, which became void": unknown,
    }
    return Converted(image, ids, segments, Counter({k: n for k, n in counts.items() if n}))


def _connected_objects(labels: np.ndarray) -> tuple[np.ndarray, dict[int, Object], int]:
    """The regions of the things: an (H, W) object map, the objects, how many were too small."""
    object_map = np.zeros(labels.shape, np.int32)
    objects: dict[int, Object] = {}
    too_small = 0
    for category_id in _THING_IDS:
        mask = (labels == category_id).astype(np.uint8)
        _, regions, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA]
        for region in range(1, len(areas)):
            if areas[region] < MIN_AREA:
                too_small += 1
                continue
            objects[len(objects) + 1] = Object(category_id)
            object_map[regions == region] = len(objects)
    return object_map, objects, too_small


def _read_tutorial(path: str, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    values = read_values(path, size)
    if values.max() > _TUTORIAL_VOID:
        raise ValueError(
            f"{path} has the value {values.max()}; the tutorial's labels have 0 to "
            f"{_TUTORIAL_VOID}, which is void."
        )
    return np.where(values == _TUTORIAL_VOID, NO_LABEL, values + 1).astype(np.int32), 0


def _read_colors(
    path: str, size: tuple[int, int], label_of: dict[int, int]
) -> tuple[np.ndarray, int]:
    codes, places = np.unique(_color_code(read_channels(path, size)), return_inverse=True)
    known = np.array([code in label_of for code in codes.tolist()])
    labels = np.array([label_of.get(code, NO_LABEL) for code in codes.tolist()], np.int32)
    places = places.reshape(size)
    return labels[places], int((~known)[places].sum())


def _color_code(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) colours as one number each."""
    return rgb @ np.array([1, 256, 65536], np.int32)


def _label_of_color(root: str) -> dict[int, int]:
    """The category id of each colour of the class table, ``NO_LABEL`` for classes of none.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a line is not "R G B name", or one of the classes is missing.
    """
    path = os.path.join(root, _COLORS)
    require_files([path], "Class table", _ADVICE)
    color_of = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S+)\s*", line)
        if match is None:
            raise ValueError(f"{path}, line {number}: {line!r} is not 'R G B name'.")
        color_of[match[4]] = tuple(map(int, match.groups()[:3]))
    category_of = {name: i for i, (_, names, _) in enumerate(_CLASSES, start=1) for name in names}
    missing = sorted(category_of.keys() - color_of.keys())
    if missing:
        raise ValueError(f"{path} has no class {missing[0]}. {_ADVICE}")
    return {
        int(_color_code(np.array(color))): category_of.get(name, NO_LABEL)
        for name, color in color_of.items()
    }
