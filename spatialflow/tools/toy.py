"""Toy scenes in COCO panoptic format, generated from a seed: ``spatialflow toy``.

A scene has a ground of one to three stuff regions, each with its own texture, and shapes that cover
each other. Some scenes have a crowd of tiny shapes, annotated as one region, or a void border.
The bytes of all files are the same on every machine: drawing is integer arithmetic on a generator
whose stream numpy has frozen, and PNGs are written without compression, whose result would depend
on the library.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spatialflow.data.register import TOY_DATASETS, datasets_root
from spatialflow.utils.command_parser import CommandParser

HEIGHT, WIDTH = 128, 160
THINGS = {1: "disk", 2: "box", 3: "triangle", 5: "ring"}
STUFF = {11: "stripes", 12: "checker", 14: "dots", 15: "noise"}
SPLITS = ("train", "val")

THING_COLORS = {1: (200, 60, 50), 2: (60, 80, 200), 3: (220, 190, 50), 5: (190, 70, 190)}
_STUFF_COLORS = {11: (70, 130, 70), 12: (120, 120, 120), 14: (140, 100, 60), 15: (70, 140, 150)}
_VERSION = 1  # to be raised with every change of the scenes
_MAX_COVER = 40  # percent of what is visible of a shape that one more shape may cover
_MIN_VISIBLE = 64  # pixels; regions with less become void

# Row and column of every pixel.
_row, _col = np.mgrid[0:HEIGHT, 0:WIDTH]


class Scene:
    """One scene being painted: ``image`` (H, W, 3) uint8, ``ids`` (H, W) int32, ``segments``."""

    def __init__(self, rng: np.random.RandomState):
        self.rng = rng
        self.image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        self.ids = np.zeros((HEIGHT, WIDTH), np.int32)
        self.segments: list[dict[str, int]] = []

    def draw(self, low: int, high: int) -> int:
        """A random integer from low to high, both included."""
        return int(self.rng.randint(low, high + 1, dtype=np.int64))

    def add_segment(self, mask: np.ndarray, category_id: int, iscrowd: int = 0) -> None:
        """Give the pixels of an (H, W) mask to a new segment."""
        # Ids above 255 and with gaps, as real ones have.
        id_ = 1000 * category_id + 7 * len(self.segments) + 1
        self.ids[mask] = id_
        self.segments.append({"id": id_, "category_id": category_id, "iscrowd": iscrowd})

    def color(self, base: tuple[int, int, int], spread: int) -> np.ndarray:
        """(3,) colour around a base colour."""
        return np.array([c + self.draw(-spread, spread) for c in base]).clip(0, 255)


def make_scene(seed: int, split: str, number: int) -> Scene:
    """The scene of a number in a split; depends on nothing but the arguments."""
    scene = Scene(np.random.RandomState([seed, SPLITS.index(split), number]))
    paint_ground(scene)
    if scene.draw(0, 3) == 0:
        _paint_crowd(scene)
    for _ in range(scene.draw(2, 5)):
        _paint_shape(scene)
    add_noise(scene)
    if scene.draw(0, 3) == 0:
        _paint_border(scene)
    forget_remnants(scene)
    return scene


def generate(root: str, train: int = 400, val: int = 60, seed: int = 0) -> None:
    """Write scenes into the folder ``toy`` below a datasets folder.

    Args:
        root: the datasets folder.
        train: number of training scenes.
        val: number of validation scenes.
        seed: seed of all scenes.
    """
    for split, count in zip(SPLITS, (train, val), strict=True):
        image_root, panoptic_root, panoptic_json = _paths(root, split)
        image_root.mkdir(parents=True, exist_ok=True)
        panoptic_root.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {
            "info": _info(seed, count),
            "images": [],
            "annotations": [],
            "categories": categories(),
        }
        for number in tqdm(range(count), desc=f"toy scenes, {split}", unit="scene"):
            scene = make_scene(seed, split, number)
            write_scene(scene, number, image_root, panoptic_root, content)
        # The JSON comes last: a split that has one is complete.
        panoptic_json.write_text(json.dumps(content, separators=(",", ":")), newline="\n")


def write_scene(
    scene: Scene, number: int, image_root: Path, panoptic_root: Path, content: dict[str, Any]
) -> None:
    """Write the image and the PNG of a scene, and add it to a panoptic JSON.

    Args:
        scene: the scene.
        number: its image id, and the name of its files.
        image_root, panoptic_root: folders that are there.
        content: the JSON, to whose ``images`` and ``annotations`` it is appended.
    """
    name = f"{number:05}.png"
    _write_png(image_root / name, scene.image)
    ids = scene.ids[..., None] >> np.array([0, 8, 16])
    _write_png(panoptic_root / name, (ids & 255).astype(np.uint8))
    image = {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
    content["images"].append(image)
    content["annotations"].append(
        {"image_id": number, "file_name": name, "segments_info": _segments_info(scene)}
    )


def ensure_toy_dataset(
    root: str | None = None, train: int = 400, val: int = 60, seed: int = 0
) -> None:
    """Generate the scenes unless exactly these are there; arguments as in :func:`generate`.

    Without ``root`` they go where relative dataset paths are looked for.
    """
    root = root or datasets_root()
    for split, count in zip(SPLITS, (train, val), strict=True):
        panoptic_json = _paths(root, split)[2]
        found = json.loads(panoptic_json.read_text()) if panoptic_json.exists() else {}
        if found.get("info") != _info(seed, count):
            return generate(root, train, val, seed)


def paint_ground(scene: Scene) -> None:
    """Paint one to three regions of stuff."""
    labels = scene.rng.permutation(sorted(STUFF))[: scene.draw(1, 3)]
    region = np.zeros((HEIGHT, WIDTH), np.int32)
    for i in range(1, len(labels)):
        region[_split(scene) & (region == scene.draw(0, i - 1))] = i
    for i, category_id in enumerate(labels.tolist()):
        mask = region == i
        if mask.any():
            scene.image[mask] = _texture(scene, category_id)[mask]
            scene.add_segment(mask, category_id)


def _split(scene: Scene) -> np.ndarray:
    """(H, W) bool: one side of a random line or parabola near the middle."""
    x0, y0 = scene.draw(WIDTH // 3, 2 * WIDTH // 3), scene.draw(HEIGHT // 3, 2 * HEIGHT // 3)
    if scene.draw(0, 1):
        return _row > y0 + scene.draw(-2, 2) * (_col - x0) ** 2 // 128
    return scene.draw(1, 8) * (_col - x0) > scene.draw(-8, 8) * (_row - y0)


def _texture(scene: Scene, category_id: int) -> np.ndarray:
    """(H, W, 3) uint8 texture of a stuff category, over the whole scene."""
    size = scene.draw(4, 6)
    if STUFF[category_id] == "stripes":
        lit = (_col * scene.draw(0, 1) + _row) // size % 2
    elif STUFF[category_id] == "checker":
        lit = (_col // size + _row // size) % 2
    elif STUFF[category_id] == "dots":
        period = 2 * size
        lit = (_col % period - size) ** 2 + (_row % period - size) ** 2 <= (size - 1) ** 2
    else:
        lit = scene.rng.randint(0, 2, (HEIGHT, WIDTH), dtype=np.int64)
    color = scene.color(_STUFF_COLORS[category_id], 15)
    return (color + (2 * lit[..., None].astype(np.int64) - 1) * 25).clip(0, 255).astype(np.uint8)


def shape_mask(name: str, x: int, y: int, rx: int, ry: int) -> np.ndarray:
    """(H, W) bool mask of a shape with half sides rx, ry around (x, y)."""
    dx, dy = np.abs(_col - x), _row - y
    if name == "box":
        return (dx <= rx) & (np.abs(dy) <= ry)
    if name == "triangle":
        return (np.abs(dy) <= ry) & (2 * dx * ry <= (dy + ry) * rx)
    square = dx**2 + dy**2
    return (square <= rx**2) & ((name == "disk") | (square >= (rx * 5 // 9) ** 2))


def _paint_shape(scene: Scene) -> None:
    """Add a shape where it leaves enough to see of the others, or none after some trials."""
    category_id = sorted(THINGS)[scene.draw(0, len(THINGS) - 1)]
    for _ in range(10):
        x, y = scene.draw(8, WIDTH - 9), scene.draw(8, HEIGHT - 9)
        mask = shape_mask(THINGS[category_id], x, y, scene.draw(10, 26), scene.draw(10, 26))
        if mask.sum() >= 4 * _MIN_VISIBLE and not _covers_too_much(scene, mask):
            _fill(scene, mask, category_id)
            scene.add_segment(mask, category_id)
            return


def _paint_crowd(scene: Scene) -> None:
    """Many tiny shapes of one class close together, annotated as one region."""
    category_id = sorted(THINGS)[scene.draw(0, len(THINGS) - 1)]
    x0, y0 = scene.draw(0, WIDTH - 48), scene.draw(0, HEIGHT - 36)
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    for _ in range(scene.draw(12, 18)):
        x, y = x0 + scene.draw(4, 43), y0 + scene.draw(4, 31)
        mask = shape_mask(THINGS[category_id], x, y, 4, 4)
        _fill(scene, mask, category_id)
        crowd |= mask
    scene.add_segment(crowd, category_id, iscrowd=1)


def _covers_too_much(scene: Scene, mask: np.ndarray) -> bool:
    shapes = [s["id"] for s in scene.segments if s["category_id"] in THINGS]
    return any(
        100 * (scene.ids[mask] == id_).sum() > _MAX_COVER * (scene.ids == id_).sum()
        for id_ in shapes
    )


def _fill(scene: Scene, mask: np.ndarray, category_id: int) -> None:
    fill_outlined(scene.image, mask, scene.color(THING_COLORS[category_id], 30))


def fill_outlined(image: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
    """Paint a shape with a dark outline.

    Args:
        image: (H, W, 3) uint8, changed in place.
        mask: (H, W) bool.
        color: (3,) RGB.
    """
    inner = mask.copy()
    for axis in (0, 1):
        for shift in (1, -1):
            inner &= np.roll(mask, shift, axis)
    image[mask] = color // 3
    image[inner] = color


def add_noise(scene: Scene) -> None:
    """Add noise to the image of a scene."""
    noise = scene.rng.randint(-12, 13, scene.image.shape, dtype=np.int64)
    scene.image = (scene.image + noise).clip(0, 255).astype(np.uint8)


def _paint_border(scene: Scene) -> None:
    """Void along the sides, dark, up to 10 pixels wide."""
    left, right, top, bottom = (scene.draw(0, 10) for _ in range(4))
    border = (_col < left) | (_col >= WIDTH - right) | (_row < top) | (_row >= HEIGHT - bottom)
    scene.image[border] //= 8
    scene.ids[border] = 0


def forget_remnants(scene: Scene) -> None:
    """Make segments void of which too little is visible."""
    for segment in list(scene.segments):
        mask = scene.ids == segment["id"]
        if mask.sum() < _MIN_VISIBLE:
            scene.ids[mask] = 0
            scene.segments.remove(segment)


def _segments_info(scene: Scene) -> list[dict[str, Any]]:
    segments = []
    for segment in scene.segments:
        y, x = np.nonzero(scene.ids == segment["id"])
        bbox = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        segments.append({**segment, "area": len(x), "bbox": [int(v) for v in bbox]})
    return segments


def categories() -> list[dict[str, Any]]:
    """The classes as entries of ``categories`` in a panoptic JSON."""
    return [
        {"id": id_, "name": name, "isthing": isthing, "color": list(colors[id_])}
        for names, colors, isthing in ((THINGS, THING_COLORS, 1), (STUFF, _STUFF_COLORS, 0))
        for id_, name in names.items()
    ]


def _info(seed: int, count: int) -> dict[str, Any]:
    return {"description": "toy scenes", "version": _VERSION, "seed": seed, "count": count}


def _paths(root: str, split: str) -> tuple[Path, ...]:
    return tuple(Path(root, p) for p in TOY_DATASETS[f"toy_panoptic_{split}"])


def _write_png(path: Path, rgb: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as a PNG whose bytes follow from the pixels alone."""
    height, width, _ = rgb.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # byte 0 of a row: no filter
    rows[:, 1:] = rgb.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _stored(rows.tobytes())), (b"IEND", b""))
    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in chunks:
            f.write(struct.pack(">I", len(data)) + kind + data)
            f.write(struct.pack(">I", zlib.crc32(kind + data)))


def _stored(data: bytes) -> bytes:
    """A zlib stream of stored blocks; what zlib itself writes differs between its versions."""
    step = 65535
    parts = [b"\x78\x01"]
    for start in range(0, len(data), step):
        block = data[start : start + step]
        last = start + step >= len(data)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    return b"".join(parts) + struct.pack(">I", zlib.adler32(data))


def parser() -> CommandParser:
    """Where to write the scenes, and how many."""
    parser = CommandParser(
        prog="spatialflow toy",
        examples="%(prog)s\n%(prog)s --root /data --train 1000 --val 100\n%(prog)s --video 600",
        description="Generate the toy scenes: toy_panoptic_train and toy_panoptic_val.",
    )
    parser.add_argument("--root", default=datasets_root(), help="datasets folder (%(default)s)")
    parser.add_argument("--train", type=int, default=400, help="number of training scenes")
    parser.add_argument("--val", type=int, default=60, help="number of validation scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--video",
        type=int,
        metavar="FRAMES",
        help="a video of moving shapes in place of the scenes: its frames, and panoptic PNGs with "
        "ids that stay",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the scenes, or the video."""
    if args.video is not None:
        from .toy_video import VIDEO_FOLDERS, generate_video

        generate_video(args.root, args.video, args.seed)
        print(f"Toy video written to {os.path.join(args.root, VIDEO_FOLDERS[0])}.")
        return
    generate(args.root, args.train, args.val, args.seed)
    print(f"Toy scenes written to {os.path.join(args.root, 'toy')}.")
