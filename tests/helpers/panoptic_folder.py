"""Small datasets in COCO panoptic format, written by the data tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from spatialflow.data.targets import rgb_of_ids

ROAD, CAR, PERSON, SKY = 0, 5, 9, 20  # category ids: unordered kinds, gaps, 0
CATEGORIES = [
    {"id": SKY, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
    {"id": CAR, "name": "car", "isthing": 1, "color": [4, 5, 6]},
    {"id": ROAD, "name": "road", "isthing": 0, "color": [7, 8, 9]},
    {"id": PERSON, "name": "person", "isthing": 1, "color": [10, 11, 12]},
]


@dataclass
class PanopticFolder:
    """A dataset in COCO panoptic format; ``content`` is what :meth:`save` writes as its JSON."""

    root: Path
    content: dict

    @property
    def paths(self) -> tuple[str, str, str]:
        """Image folder, PNG folder and JSON."""
        return tuple(str(self.root / p) for p in ("images", "panoptic", "panoptic.json"))

    def add(self, ids: np.ndarray, segments: list[dict], name: str | None = None) -> None:
        """Write an image with an (H, W) map of segment ids and its entries in the JSON."""
        number = len(self.content["images"])
        name = name or f"{number:03}"
        height, width = ids.shape
        pixels = np.random.RandomState(number).randint(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(self.root / "images" / f"{name}.png")
        write_ids(self.root / "panoptic" / f"{name}.png", ids)
        self.content["images"].append(
            {"id": number + 10, "file_name": f"{name}.png", "height": height, "width": width}
        )
        self.content["annotations"].append(
            {"image_id": number + 10, "file_name": f"{name}.png", "segments_info": segments}
        )

    def save(self) -> PanopticFolder:
        (self.root / "panoptic.json").write_text(json.dumps(self.content))
        return self


def write_ids(path: Path, ids: np.ndarray) -> None:
    """Write an (H, W) map of segment ids as a panoptic PNG."""
    Image.fromarray(rgb_of_ids(ids)).save(path)


def segment(id_: int, category_id: int, iscrowd: int = 0) -> dict:
    return {"id": id_, "category_id": category_id, "iscrowd": iscrowd}


def scene() -> tuple[np.ndarray, list[dict]]:
    """A 20x30 map: sky above road, a car, a crowd of persons, a void column."""
    ids = np.full((20, 30), 1, np.int64)
    ids[10:] = 256
    ids[6:14, 4:12] = 70000
    ids[2:5, 20:26] = 513
    ids[:, 29] = 0
    segments = [segment(1, SKY), segment(256, ROAD), segment(70000, CAR), segment(513, PERSON, 1)]
    return ids, segments


def write_cityscapes(root: Path) -> tuple[str, str, str]:
    """One image in Cityscapes' layout: road (id 7) and a car (id 26); returns the paths.

    The JSON is as createPanopticImgs of cityscapesscripts makes it: the file name it gives for the
    image does not exist.
    """
    (root / "images" / "ulm").mkdir(parents=True)
    (root / "panoptic").mkdir()
    id_ = "ulm_000000_000019"
    image = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    image.save(root / "images" / "ulm" / f"{id_}_leftImg8bit.png")
    ids = np.full((4, 6), 7)
    ids[1:3, 1:3] = 26000
    write_ids(root / "panoptic" / f"{id_}_gtFine_panoptic.png", ids)
    file_name = f"{id_}_gtFine_leftImg8bit.png"
    content = {
        "images": [{"id": id_, "width": 6, "height": 4, "file_name": file_name}],
        "annotations": [
            {
                "image_id": id_,
                "file_name": f"{id_}_gtFine_panoptic.png",
                "segments_info": [segment(7, 7), segment(26000, 26)],
            }
        ],
        "categories": [],
    }
    (root / "panoptic.json").write_text(json.dumps(content))
    return tuple(str(root / name) for name in ("images", "panoptic", "panoptic.json"))
