"""Answers of the server."""

import json

import cv2
import numpy as np
from panopticapi.utils import rgb2id
from pycocotools import mask as coco_mask
from served import CATEGORIES

from spatialflow.tools.serve.answers import OUTPUTS
from spatialflow.visualization import draw_panoptic, drawn_segments

SEGMENTS = [
    {"id": 7, "isthing": True, "category_id": 0, "score": 0.75},
    {"id": 300, "isthing": False, "category_id": 1},
]


def scene():
    ids = np.zeros((40, 50), np.int32)
    ids[20:] = 300
    cv2.circle(ids, (25, 20), 12, 7, 4)
    return np.full((40, 50, 3), 90, np.uint8), ids


def test_json_describes_every_segment():
    image, ids = scene()
    media_type, body = OUTPUTS["json"](image, (ids, SEGMENTS), CATEGORIES)
    assert media_type == "application/json"
    answer = json.loads(body)
    assert (answer["width"], answer["height"]) == (50, 40)
    disk, grass = answer["segments"]
    assert disk["category"] == "disk" and disk["score"] == 0.75 and disk["color"] == [200, 60, 50]
    assert grass["category_id"] == 11 and "score" not in grass
    for segment in (disk, grass):
        mask = coco_mask.decode(segment["segmentation"])
        assert (mask == (ids == segment["id"])).all() and mask.sum() == segment["area"]


def test_ids_are_coco_s_png():
    image, ids = scene()
    media_type, body = OUTPUTS["ids"](image, (ids, SEGMENTS), CATEGORIES)
    assert media_type == "image/png"
    decoded = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert (rgb2id(decoded[:, :, ::-1]) == ids).all()


def test_the_drawn_picture_is_that_of_the_drawing_function():
    image, ids = scene()
    _, body = OUTPUTS["drawn"](image, (ids, SEGMENTS), CATEGORIES)
    decoded = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert (decoded == draw_panoptic(image, ids, drawn_segments(SEGMENTS, CATEGORIES))).all()
