"""A small Cityscapes tree, made from polygons by Cityscapes' own scripts."""

import json

import cv2
import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import json2labelImg

IDS = ("ulm_000000_000019", "bonn_000003_000019")
SIZE = (64, 128)
_KINDS = ("leftImg8bit", "gtFine")


def box(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def scene(number):
    """Sky over road, two cars, a person, a group of cars, and void at the bottom."""
    shift = 6 * number
    return [
        ("sky", box(0, 0, 127, 30)),
        ("road", box(0, 31, 127, 63)),
        ("car", box(4 + shift, 20, 33 + shift, 45)),
        ("car", box(50 + shift, 24, 75 + shift, 50)),
        ("person", box(90 + shift, 10, 101 + shift, 50)),
        ("cargroup", box(112 + shift, 30, 127, 40)),
        ("ego vehicle", box(0, 58, 127, 63)),
    ]


def write_tree(root, splits=("val",)):
    """Images, polygons, and the label images that Cityscapes is distributed with."""
    height, width = SIZE
    for split in splits:
        for number, image_id in enumerate(IDS):
            folders = [root / kind / split / image_id.split("_")[0] for kind in _KINDS]
            for folder in folders:
                folder.mkdir(parents=True)
            images, labels = folders
            stem = labels / f"{image_id}_gtFine"
            objects = [{"label": name, "polygon": shape} for name, shape in scene(number)]
            polygons = {"imgHeight": height, "imgWidth": width, "objects": objects}
            stem.with_name(f"{stem.name}_polygons.json").write_text(json.dumps(polygons))
            source = f"{stem}_polygons.json"
            json2labelImg(source, f"{stem}_labelIds.png")
            json2labelImg(source, f"{stem}_labelTrainIds.png", "trainIds")
            picture = _instance_ids(source)
            cv2.imwrite(f"{stem}_instanceIds.png", picture)
            picture = np.stack([picture % 256, picture // 50, picture // 100], axis=2)
            name = str(images / f"{image_id}_leftImg8bit.png")
            cv2.imwrite(name, picture.astype(np.uint8))


def _instance_ids(polygons):
    # The script's own function that also saves does not go with newer versions of Pillow.
    annotation = Annotation()
    annotation.fromJsonFile(polygons)
    return np.array(createInstanceImage(annotation, "ids")).astype(np.uint16)
