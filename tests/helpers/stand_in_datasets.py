"""Small datasets that stand in for COCO and CamVid, whose pictures may not be passed on.

COCO's is the annotation of its two sample images (CC BY 4.0, see recordings/README.md), with plain
pictures of the same sizes. CamVid's has its classes and layout, and drawn scenes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from panoptic_folder import write_ids
from recordings import COCO_SAMPLE

from spatialflow.model_zoo.shipped import read_card, shipped_weights

CAMVID_SIZE = 360, 480
_SKY, _BUILDING, _POLE, _ROAD, _PAVEMENT, _TREE, _SIGN, _FENCE = range(1, 9)
_CAR, _PEDESTRIAN, _BICYCLIST = 9, 10, 11


def write_coco_sample(root: Path) -> Path:
    """COCO's two sample images as val2017 and train2017, below ``root``/coco; returns ``root``."""
    coco = root / "coco"
    shutil.copytree(COCO_SAMPLE, coco, ignore=shutil.ignore_patterns("*.md"))
    content = json.loads((coco / "annotations" / "panoptic_val2017.json").read_text())
    (coco / "val2017").mkdir()
    for image in content["images"]:
        picture = _texture(image["id"], (image["height"], image["width"]))
        cv2.imwrite(str(coco / "val2017" / image["file_name"]), picture)
    for folder in ("val2017", "panoptic_val2017"):
        shutil.copytree(coco / folder, coco / folder.replace("val", "train"))
    for kind in ("panoptic", "instances"):
        file = coco / "annotations" / f"{kind}_val2017.json"
        shutil.copy(file, file.with_name(f"{kind}_train2017.json"))
    return root


def write_camvid(root: Path, train: int = 6, val: int = 4) -> Path:
    """Scenes with CamVid's classes in COCO panoptic format; returns ``root``."""
    categories = read_card(shipped_weights("camvid/spatialflow_lite0.yaml")).categories
    for split, number, prefix, first in (
        ("train", train, "0006R0_f0", 930),
        ("val", val, "0016E5_0", 7959),
    ):
        (root / split).mkdir(parents=True)
        (root / f"panoptic_{split}").mkdir()
        content = {"images": [], "annotations": [], "categories": categories}
        for i in range(number):
            _add_scene(root, split, f"{prefix}{first + i}", i, content)
        (root / f"panoptic_{split}.json").write_text(json.dumps(content))
    return root


def _add_scene(root: Path, split: str, stem: str, number: int, content: dict) -> None:
    """One picture: stuff in bands, things in front of it, a strip of void."""
    rng = np.random.default_rng(number)
    height, width = CAMVID_SIZE
    ids = np.full(CAMVID_SIZE, _SKY, np.int64)
    ids[120:220], ids[220:], ids[300:] = _BUILDING, _PAVEMENT, _ROAD
    ids[80:220, 300:], ids[180:220, 360:], ids[60:80, 92:112] = _TREE, _FENCE, _SIGN
    ids[80:260, 100:104] = _POLE
    classes = {i: i for i in range(_SKY, _FENCE + 1)}
    things = (_CAR, _CAR, _PEDESTRIAN, _BICYCLIST)[: 2 + number % 3]
    for i, category in enumerate(things):
        y, x = int(rng.integers(200, 290)), 120 + 85 * i + int(rng.integers(0, 20))
        id_ = 256 * category + i + 1
        cv2.ellipse(mask := np.zeros(CAMVID_SIZE, np.uint8), (x, y), (28, 20), 0, 0, 360, 1, -1)
        ids[mask > 0], classes[id_] = id_, category
    ids[:, :4] = 0
    write_ids(root / f"panoptic_{split}" / f"{stem}.png", ids)
    picture = _texture(number, CAMVID_SIZE) // 4 + ((ids % 97) * 2)[..., None].astype(np.uint8)
    cv2.imwrite(str(root / split / f"{stem}.jpg"), picture)
    image = {"id": number + 1, "file_name": f"{stem}.jpg", "height": height, "width": width}
    segments = [_segment(ids == id_, id_, category) for id_, category in classes.items()]
    annotation = {"image_id": number + 1, "file_name": f"{stem}.png", "segments_info": segments}
    content["images"].append(image)
    content["annotations"].append(annotation)


def _segment(mask: np.ndarray, id_: int, category: int) -> dict:
    y, x = np.nonzero(mask)
    box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
    return {
        "id": id_,
        "category_id": category,
        "iscrowd": 0,
        "area": len(x),
        "bbox": [int(v) for v in box],
    }


def _texture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 of smooth colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return cv2.resize(coarse, size[::-1])
