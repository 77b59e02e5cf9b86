"""Mapillary Vistas' panoptic annotation, versions 1.2 and 2.0."""

import json

import numpy as np
import pytest
from converted import content, first_sample, maps, problems, save_noise
from panoptic_folder import write_ids
from PIL import Image

from spatialflow.tools.convert import convert_mapillary

BIRD, CURB, CAR, SKY = 1, 3, 56, 28
CATEGORIES = [  # as in panoptic_2018.json: ids from 1, the full name as supercategory
    {"id": BIRD, "name": "Bird", "supercategory": "animal--bird", "isthing": 1},
    {"id": CURB, "name": "Curb", "supercategory": "construction--barrier--curb", "isthing": 0},
    {"id": SKY, "name": "Sky", "supercategory": "nature--sky", "isthing": 0},
    {"id": CAR, "name": "Car", "supercategory": "object--vehicle--car", "isthing": 1},
]
for _c in CATEGORIES:
    _c["color"] = [_c["id"], 100, 200]


def ids():
    """20x30: sky over curb, two cars, a crowd of birds, void below, an id without an entry."""
    ids = np.full((20, 30), 1)
    ids[10:] = 2
    ids[18:] = 0
    ids[8:14, 2:8] = 70000
    ids[8:14, 8:16] = 300
    ids[2:4, 20:26] = 4
    ids[0, 0] = 999
    return ids


def segments():
    rows = ((1, SKY, 0), (2, CURB, 1), (70000, CAR, 0), (300, CAR, 0), (4, BIRD, 1), (5, CAR, 0))
    return [
        {"id": i, "category_id": c, "iscrowd": crowd, "area": 7, "bbox": []} for i, c, crowd in rows
    ]


def write_split(root, split, version):
    """One image; version '' is the layout of the first downloads."""
    folder = root / split / version / "panoptic"
    folder.mkdir(parents=True)
    save_noise(root / split / "images" / "0aBc-_1.jpg")
    write_ids(folder / "0aBc-_1.png", ids())
    image = {"id": "0aBc-_1", "file_name": "0aBc-_1.jpg", "height": 20, "width": 30}
    annotation = {"image_id": "0aBc-_1", "file_name": "0aBc-_1.png", "segments_info": segments()}
    panoptic = {"images": [image], "annotations": [annotation], "categories": CATEGORIES}
    name = "panoptic_2020.json" if version == "v2.0" else "panoptic_2018.json"
    (folder / name).write_text(json.dumps({**panoptic, "info": {}}))


@pytest.fixture
def root(tmp_path):
    write_split(tmp_path, "training", "v2.0")
    write_split(tmp_path, "validation", "v2.0")
    return tmp_path


def convert(root, version="v2.0", splits=("training",), max_size=None):
    return convert_mapillary(str(root), version, splits, max_size, workers=1)


@pytest.mark.parametrize(("layout", "version"), [("", "v1.2"), ("v1.2", "v1.2"), ("v2.0", "v2.0")])
def test_both_splits_of_every_layout(tmp_path, layout, version):
    for split in ("training", "validation"):
        write_split(tmp_path, split, layout)
    datasets = convert(tmp_path, version, ("training", "validation"))
    assert [d.name for d in datasets] == [
        f"mapillary_{version}_panoptic_{split}" for split in ("training", "validation")
    ]
    for dataset in datasets:
        assert problems(dataset) == set()


def test_what_differs_from_coco_is_put_right(root, capsys):
    (dataset,) = convert(root)
    classes, crowd = maps(dataset)
    category_of = {0: -1, 999: -1} | {s["id"]: s["category_id"] for s in segments()}
    np.testing.assert_array_equal(classes, np.vectorize(category_of.get)(ids()))
    assert crowd.sum() == 12  # the birds; stuff is no crowd
    written = {s["id"]: s for s in content(dataset)["annotations"][0]["segments_info"]}
    assert set(written) == {1, 2, 4, 300, 70000}
    assert (written[300]["area"], written[300]["bbox"]) == (48, [8, 8, 8, 6])
    out = capsys.readouterr().out
    assert "1 ids of PNGs without an entry in the JSON, which became void" in out
    assert "1 segments without a pixel, which were left out" in out


def test_categories_are_those_of_the_json(root):
    written = content(convert(root)[0])["categories"]
    without_super = [{k: v for k, v in c.items() if k != "supercategory"} for c in CATEGORIES]
    assert written == sorted(without_super, key=lambda c: c["id"])


def test_training_gets_the_targets(root, cfg):
    sample = first_sample(convert(root)[0], cfg)
    assert sample["instances"].gt_classes.tolist() == [1, 1]
    boxes = sample["instances"].gt_boxes.tensor.tolist()
    assert sorted(boxes) == [[2, 8, 8, 14], [8, 8, 16, 14]]
    assert sample["sem_seg"][[5, 15, 19, 9, 0], [5, 5, 5, 5, 0]].tolist() == [2, 1, 255, 0, 255]
    assert sample["crowd_mask"].sum() == 12


def test_smaller_images(root, capsys):
    (dataset,) = convert(root, max_size=15)
    assert problems(dataset) == set()
    image = Image.open(root / "images_training_15" / "0aBc-_1.jpg")
    assert image.size == (15, 10)
    assert (content(dataset)["images"][0]["height"], dataset.name) == (
        10,
        "mapillary_v2.0_panoptic_training_15",
    )
    classes, _ = maps(dataset)
    assert (classes[4:7, 1:8] == CAR).all()
    assert (classes[9] == -1).all()
    original = np.asarray(Image.open(root / "training" / "images" / "0aBc-_1.jpg"), float)
    means = original.reshape(10, 2, 15, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(image) - means).mean() < 20


def test_images_that_are_small_enough_keep_their_size(root):
    (dataset,) = convert(root, max_size=100)
    assert Image.open(root / "images_training_100" / "0aBc-_1.jpg").size == (30, 20)
    np.testing.assert_array_equal(maps(dataset)[0], maps(convert(root)[0])[0])


def test_segments_that_resizing_loses(root, capsys):
    map_ = ids()
    map_[1, 1] = 5
    write_ids(root / "training" / "v2.0" / "panoptic" / "0aBc-_1.png", map_)
    (dataset,) = convert(root, max_size=15)
    assert problems(dataset) == set()
    assert "1 segments too small for the new size" in capsys.readouterr().out


def edit(root, change):
    path = root / "training" / "v2.0" / "panoptic" / "panoptic_2020.json"
    panoptic = json.loads(path.read_text())
    change(panoptic)
    path.write_text(json.dumps(panoptic))


def unknown_category(p):
    p["annotations"][0]["segments_info"][1]["category_id"] = 77


def large_id(p):
    p["annotations"][0]["segments_info"][1]["id"] = 2**24


def other_image(p):
    p["annotations"][0]["image_id"] = "x"


def same_category_twice(p):
    p["categories"].append(p["categories"][0])


def other_size(p):
    p["images"][0]["width"] = 31


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unknown_category, r"panoptic_2020.json, 0aBc-_1.png: segment 2 of category 77"),
        (large_id, r"0aBc-_1.png: segment 16777216 of category 3: the id must be from 1"),
        (other_image, r"0aBc-_1.png: image_id is 'x', which is not in 'images'"),
        (same_category_twice, r"panoptic_2020.json: Category id 1 is given twice"),
        (other_size, r"0aBc-_1.png is 30x20 .*its JSON says 31x20"),
    ],
)
def test_wrong_jsons_are_named(root, change, message):
    edit(root, change)
    with pytest.raises(ValueError, match=message):
        convert(root)


def test_missing_files_are_named(root):
    with pytest.raises(FileNotFoundError, match="Vistas v1.2 not found: .*panoptic_2018.json"):
        convert(root, "v1.2")
    (root / "training" / "images" / "0aBc-_1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="Image .*0aBc-_1.jpg not found"):
        convert(root)
    save_noise(root / "training" / "images" / "0aBc-_1.jpg")
    (root / "training" / "v2.0" / "panoptic" / "0aBc-_1.png").unlink()
    with pytest.raises(FileNotFoundError, match="Panoptic PNG .*0aBc-_1.png not found"):
        convert(root)


def test_an_annotation_of_another_format(root):
    edit(root, lambda p: p["annotations"][0].pop("segments_info"))
    with pytest.raises(ValueError, match="has no 'segments_info'"):
        convert(root)
