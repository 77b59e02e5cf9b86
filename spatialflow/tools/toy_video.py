"""Toy scenes in motion: ``spatialflow toy --video FRAMES``.

A video is made of shots of 60 frames with a cut between them. In each shot two shapes of one class
cross, a third one is hidden behind a fourth for 10 frames, a fifth enters and a sixth leaves. As in
the still scenes all arithmetic is on integers, and what is hardly visible is void.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import toy

SHOT = 60
"""Frames of a shot."""
VIDEO_FOLDERS = ("toy/video", "toy/panoptic_video", "toy/panoptic_video.json")
"""Frames, PNGs and JSON below a datasets folder."""
_UNIT = 16  # positions and speeds are in sixteenths of a pixel


@dataclass(frozen=True)
class _Shape:
    """A shape and its way; it covers those before it in the list."""

    id: int
    category_id: int
    radii: tuple[int, int]
    start: tuple[int, int]
    speed: tuple[int, int]
    color: np.ndarray

    def mask(self, frame: int) -> np.ndarray:
        """(H, W) bool in a frame of the shot."""
        x, y = (
            (_UNIT * at + v * frame) // _UNIT for at, v in zip(self.start, self.speed, strict=True)
        )
        return toy.shape_mask(toy.THINGS[self.category_id], x, y, *self.radii)


def video_frames(seed: int, frames: int) -> Iterator[toy.Scene]:
    """The frames of the video of a seed, one after the other.

    Args:
        seed: which video.
        frames: how many.

    Yields:
        ``image`` (H, W, 3) uint8 RGB, ``ids`` (H, W) int32 with ids that stay with an object (those
        of stuff with its class), ``segments``.
    """
    for shot in range(-(-frames // SHOT)):
        scene = toy.Scene(np.random.RandomState([seed, len(toy.SPLITS), shot]))
        toy.paint_ground(scene)
        ground = scene.image.copy()
        labels = [(s["category_id"], scene.ids == s["id"]) for s in scene.segments]
        shapes = _cast(scene, shot)
        for frame in range(min(SHOT, frames - shot * SHOT)):
            scene.image, scene.ids = ground.copy(), np.zeros_like(scene.ids)
            scene.segments = []
            for category_id, mask in labels:
                _add(scene, mask, 1000 * category_id, category_id)
            for shape in shapes:
                mask = shape.mask(frame)
                toy.fill_outlined(scene.image, mask, shape.color)
                _add(scene, mask, shape.id, shape.category_id)
            toy.add_noise(scene)
            toy.forget_remnants(scene)
            yield scene


def generate_video(root: str, frames: int, seed: int = 0) -> None:
    """Write the frames, their PNGs and the JSON in COCO panoptic format, in the order of the video.

    Args:
        root: the datasets folder.
        frames: how many.
        seed: which video.
    """
    image_root, panoptic_root, panoptic_json = (Path(root, p) for p in VIDEO_FOLDERS)
    image_root.mkdir(parents=True, exist_ok=True)
    panoptic_root.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": toy.categories()}
    progress = tqdm(video_frames(seed, frames), total=frames, desc="toy video", unit="frame")
    for number, scene in enumerate(progress):
        toy.write_scene(scene, number, image_root, panoptic_root, content)
    panoptic_json.write_text(json.dumps(content, separators=(",", ":")), newline="\n")


def _cast(scene: toy.Scene, shot: int) -> list[_Shape]:
    """The six shapes of a shot, from back to front."""
    classes = sorted(toy.THINGS)
    crossing, hidden, entering = (classes[scene.draw(0, len(classes) - 1)] for _ in range(3))
    top, middle, bottom = (y + scene.draw(-3, 3) for y in (26, 66, 104))
    # Rows and columns: where a shape is in frame 0, and sixteenths of a pixel that it moves.
    plan = [
        (crossing, (13, 13), (130, top + 6), (-30, 0)),
        (crossing, (16, 16), (24, top - 4), (30, 2)),
        (hidden, (10, 10), (20, middle), (64, 0)),  # 20 columns of 60 at 4 a frame: 10 frames
        (2, (30, 17), (84, middle), (0, 0)),
        (entering, (14, 12), (-10 - scene.draw(0, 20), bottom), (32, -2)),
        (entering, (15, 13), (120, bottom + 2), (28 + scene.draw(0, 8), 1)),
    ]
    shapes = []
    for number, (category_id, radii, start, speed) in enumerate(plan):
        id_ = 100_000 + len(plan) * shot + number
        color = scene.color(toy.THING_COLORS[category_id], 30)
        shapes.append(_Shape(id_, category_id, radii, start, speed, color))
    return shapes


def _add(scene: toy.Scene, mask: np.ndarray, id_: int, category_id: int) -> None:
    scene.ids[mask] = id_
    scene.segments.append({"id": id_, "category_id": category_id, "iscrowd": 0})
