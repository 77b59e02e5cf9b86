"""Semantic PNGs and instances into COCO panoptic format."""

import json
import os
from functools import partial

import numpy as np
import pytest
from converted import content, first_sample, maps, problems, save, save_noise
from PIL import Image
from pycocotools import mask as mask_util

from spatialflow.cli import run_command
from spatialflow.data.targets import read_panoptic_png
from spatialflow.tools.convert import Dataset, Pairs, convert_pairs

main = partial(run_command, "convert")

SKY, ROAD, CAR, PERSON = 1, 2, 300, 4  # 300: semantic PNGs of 16 bits
CATEGORIES = [
    {"id": SKY, "name": "sky", "isthing": 0},
    {"id": ROAD, "name": "road", "isthing": 0, "color": [9, 9, 9]},
    {"id": CAR, "name": "car", "isthing": 1},
    {"id": PERSON, "name": "person", "isthing": 1},
]


def semantic():
    """20x30: sky over road, a column of 255, cars in rows 8 to 13, persons in rows 2 and 3."""
    labels = np.full((20, 30), SKY, np.uint16)
    labels[10:] = ROAD
    labels[:, 29] = 255
    labels[8:14, 2:20] = CAR
    labels[2:4, 2:6] = PERSON
    return labels


def instance_numbers():
    """Two cars that leave the last columns of the cars uncovered; no person."""
    numbers = np.zeros((20, 30), np.uint8)
    numbers[8:14, 2:8] = 7
    numbers[7:14, 8:16] = 9  # its first row lies on sky: it keeps it
    return numbers


@pytest.fixture
def root(tmp_path):
    """Two images with semantic and instance PNGs."""
    for name in ("a", "b"):
        save_noise(tmp_path / "images" / f"{name}.jpg")
        save(tmp_path / "semantic" / f"{name}.png", semantic())
        save(tmp_path / "numbers" / f"{name}.png", instance_numbers())
    (tmp_path / "categories.json").write_text(json.dumps(CATEGORIES))
    return tmp_path


def convert(root, workers=1, **given):
    if "instances" not in given:
        given = {"instance_pngs": str(root / "numbers"), **given}
    given = {"semantic": str(root / "semantic"), **given}
    pairs = Pairs(str(root / "images"), str(root / "categories.json"), **given)
    return convert_pairs(pairs, str(root / "panoptic_train"), workers)


def write_instances(root, annotations):
    """The instances JSON, with the annotations for a.jpg and none for b.jpg."""
    instances = {
        "images": [
            {"id": 5, "file_name": "a.jpg", "height": 20, "width": 30},
            {"id": 6, "file_name": "b.jpg", "height": 20, "width": 30},
        ],
        "annotations": [
            {"id": i, "image_id": 5, "iscrowd": 0, **a} for i, a in enumerate(annotations, start=1)
        ],
    }
    path = root / "instances.json"
    path.write_text(json.dumps(instances))
    return str(path)


def box(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def test_instance_pngs(root):
    dataset = convert(root)
    assert problems(dataset) == set()
    classes, crowd = maps(dataset)
    expected = semantic().astype(int)
    expected[expected == 255] = -1
    expected[7, 8:16] = CAR
    np.testing.assert_array_equal(classes, expected)
    uncovered = np.zeros((20, 30), bool)
    uncovered[8:14, 16:20] = uncovered[2:4, 2:6] = True
    np.testing.assert_array_equal(crowd, uncovered)
    segments = content(dataset)["annotations"][0]["segments_info"]
    cars = sorted(s["area"] for s in segments if s["category_id"] == CAR)
    assert cars == [24, 36, 56]
    assert len(segments) == 6  # sky, road, two cars, crowds of cars and of persons


def test_the_json_lists_images_and_categories(root):
    written = content(convert(root))
    assert written["images"][1] == {"id": "b", "file_name": "b.jpg", "height": 20, "width": 30}
    assert [a["file_name"] for a in written["annotations"]] == ["a.png", "b.png"]
    assert [c["id"] for c in written["categories"]] == [SKY, ROAD, PERSON, CAR]
    assert written["categories"][1] == CATEGORIES[1]


def test_training_gets_the_targets(root, cfg):
    sample = first_sample(convert(root), cfg)
    # Things 0 person, 1 car; the boxes are those of the instance PNG.
    assert sample["instances"].gt_classes.tolist() == [1, 1]
    assert sample["instances"].gt_boxes.tensor.tolist() == [[2, 8, 8, 14], [8, 7, 16, 14]]
    assert sample["sem_seg"][0, 0] == 1
    assert sample["sem_seg"][19, 0] == 2
    assert sample["sem_seg"][3, 3] == 0
    assert sample["sem_seg"][0, 29] == 255
    assert sample["crowd_mask"].sum() == 24 + 8


def test_uncovered_things_can_be_void(root):
    classes, crowd = maps(convert(root, uncovered="void"))
    assert (classes[8:14, 16:20] == -1).all()
    assert (classes[2:4, 2:6] == -1).all()
    assert (classes[8:14, 2:16] == CAR).all()
    assert not crowd.any()


def test_instance_numbers_as_rgb(root):
    rgb = np.zeros((20, 30, 3), np.uint8)
    rgb[8:14, 2:8, 1] = 7
    rgb[8:14, 8:20, 2] = 7
    for name in ("a", "b"):
        save(root / "numbers" / f"{name}.png", rgb)
    segments = content(convert(root))["annotations"][0]["segments_info"]
    cars = [s["bbox"] for s in segments if s["category_id"] == CAR and not s["iscrowd"]]
    assert sorted(cars) == [[2, 8, 6, 6], [8, 8, 12, 6]]


def test_semantic_pngs_with_a_palette(root):
    categories = [{**c, "id": 3} if c["id"] == CAR else c for c in CATEGORIES]
    (root / "categories.json").write_text(json.dumps({"categories": categories}))
    labels = np.where(semantic() == CAR, 3, semantic()).astype(np.uint8)
    image = Image.fromarray(labels).convert("P")
    image.putpalette(list(range(256)) * 3)
    for name in ("a", "b"):
        image.save(root / "semantic" / f"{name}.png")
    classes, _ = maps(convert(root))
    assert set(np.unique(classes)) == {-1, SKY, ROAD, 3, PERSON}


def test_polygons_and_rles(root):
    rle = np.zeros((20, 30), np.uint8, order="F")
    rle[8:14, 8:16] = 1
    compressed = mask_util.encode(rle)
    compressed["counts"] = compressed["counts"].decode()
    counts = [25 * 20 + 8, 6, 14, 6, 66]  # down columns 25 and 26, rows 8 to 13
    instances = write_instances(
        root,
        [
            {"category_id": CAR, "segmentation": box(2, 8, 8, 14)},
            {"category_id": CAR, "segmentation": compressed},
            {"category_id": CAR, "segmentation": {"size": [20, 30], "counts": counts}},
        ],
    )
    dataset = convert(root, instances=instances, uncovered="void")
    assert problems(dataset) == set()
    a, b = content(dataset)["annotations"]
    cars = [s["bbox"] for s in a["segments_info"] if s["category_id"] == CAR]
    assert sorted(cars) == [[2, 8, 6, 6], [8, 8, 8, 6], [25, 8, 2, 6]]
    assert {s["category_id"] for s in b["segments_info"]} == {SKY, ROAD}


def test_smaller_instances_are_on_top_and_crowds_below(root, capsys):
    instances = write_instances(
        root,
        [
            {"category_id": PERSON, "segmentation": box(4, 8, 6, 10)},  # in the car
            {"category_id": CAR, "segmentation": box(2, 8, 12, 14)},
            {"category_id": CAR, "segmentation": box(2, 8, 20, 14), "iscrowd": 1},
            {"category_id": PERSON, "segmentation": box(2, 2, 6, 4)},
            {"category_id": PERSON, "segmentation": box(2, 2, 6, 4)},  # the same again
        ],
    )
    dataset = convert(root, instances=instances)
    assert problems(dataset) == set()
    classes, crowd = maps(dataset)
    assert (classes[8:10, 4:6] == PERSON).all()
    assert (classes[10:14, 2:20] == CAR).all()
    assert crowd[8:14, 12:20].all()
    assert not crowd[8:14, 2:12].any()
    assert "1 instances left out, since smaller ones hide them" in capsys.readouterr().out


def test_crowds_that_are_none(root):
    """What CVAT exports: masks as RLE, all of them with iscrowd 1."""
    runs = {"size": [20, 30], "counts": [25 * 20 + 8, 6, 86]}
    path = write_instances(root, [{"category_id": CAR, "segmentation": runs, "iscrowd": 1}])
    for crowds in (True, False):
        _, crowd = maps(convert(root, instances=path, uncovered="void", crowds=crowds))
        assert crowd.sum() == 6 * crowds


def test_an_instances_json_alone_with_stuff_in_it(root):
    instances = write_instances(
        root,
        [
            {"category_id": ROAD, "segmentation": box(0, 10, 30, 20)},
            {"category_id": SKY, "segmentation": box(0, 0, 30, 18)},  # larger: below the road
            {"category_id": CAR, "segmentation": box(2, 8, 12, 14)},
        ],
    )
    dataset = convert(root, instances=instances, semantic=None)
    classes, _ = maps(dataset)
    assert (classes[:8] == SKY).all()
    assert (classes[14:] == ROAD).all()
    assert (classes[8:14, 2:12] == CAR).all()
    assert problems(dataset) == {"wholly_void"}  # b.jpg, which has no annotation


def test_an_export_of_polygons_without_kinds_of_categories(root, capsys):
    """As labelme2coco and CVAT write it: categories from 0 or 1 without isthing, and folders."""
    annotations = [
        {"category_id": 0, "segmentation": box(0, 10, 30, 20)},
        {"category_id": 1, "segmentation": box(2, 8, 12, 14)},
    ]
    path = write_instances(root, annotations)
    instances = json.loads((root / "instances.json").read_text())
    for image in instances["images"]:
        image["file_name"] = f"some/folder/{image['file_name']}"
    instances["categories"] = [{"id": 0, "name": "road"}, {"id": 1, "name": "car"}]
    (root / "instances.json").write_text(json.dumps(instances))
    folder = str(root / "out" / "panoptic")
    command = ["pairs", "--images", str(root / "images"), "--instances", path, "--workers", "1"]
    main([*command, "--categories", path, "--things", "car", "--output", folder])
    out = capsys.readouterr().out
    assert f'- ["out_panoptic", "{root}/images", "{folder}", "{folder}.json"]' in out
    dataset = Dataset("panoptic", str(root / "images"), folder, f"{folder}.json")
    classes, _ = maps(dataset)
    assert (classes[14:] == 0).all()
    assert (classes[8:14, 2:12] == 1).all()
    assert [c["isthing"] for c in content(dataset)["categories"]] == [0, 1]


def test_things_that_are_no_category(root):
    with pytest.raises(ValueError, match=r"no category 'tree'; it has \['sky', .*--things"):
        convert(root, things=("car", "tree"))


def test_images_are_as_their_exif_data_turns_them(root, cfg):
    image = Image.open(root / "images" / "a.jpg")
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.transpose(Image.Transpose.ROTATE_90).save(root / "images" / "a.jpg", exif=exif)
    assert Image.open(root / "images" / "a.jpg").size == (20, 30)
    dataset = convert(root)
    assert problems(dataset) == set()
    assert first_sample(dataset, cfg)["sem_seg"].shape == (20, 30)


def test_two_processes_write_the_same(root):
    convert(root)
    one = {p.name: p.read_bytes() for p in (root / "panoptic_train").iterdir()}
    for p in (root / "panoptic_train").iterdir():
        p.unlink()
    convert(root, workers=2)
    assert {p.name: p.read_bytes() for p in (root / "panoptic_train").iterdir()} == one


def test_camvid_taken_apart_and_put_together(camvid, tmp_path):
    paths = [str(camvid / p) for p in ("val", "panoptic_val", "panoptic_val.json")]
    truth = Dataset("camvid", *paths)
    for number in range(3):
        take_apart(truth, number, tmp_path)
    dataset = convert(tmp_path)
    assert problems(dataset) == set()
    for number in range(3):
        assert content(dataset)["images"][number]["id"] == stem(truth, number)
        for a, b in zip(maps(dataset, number), maps(truth, number), strict=True):
            np.testing.assert_array_equal(a, b)
        assert measured(dataset, number) == measured(truth, number)


def take_apart(truth, number, root):
    """Write image, semantic PNG, instance PNG and the categories of one image."""
    given = content(truth)
    isthing = {c["id"]: c["isthing"] for c in given["categories"]}
    ids = read_panoptic_png(f"{truth.panoptic_root}/{stem(truth, number)}.png")
    labels, numbers = np.full(ids.shape, 255, np.uint8), np.zeros(ids.shape, np.uint8)
    segments = given["annotations"][number]["segments_info"]
    for i, s in enumerate(segments, start=1):
        labels[ids == s["id"]] = s["category_id"]
        numbers[ids == s["id"]] = i * (isthing[s["category_id"]] and not s["iscrowd"])
    save(root / "semantic" / f"{stem(truth, number)}.png", labels)
    save(root / "numbers" / f"{stem(truth, number)}.png", numbers)
    (root / "categories.json").write_text(json.dumps(given))
    (root / "images").mkdir(exist_ok=True)
    file_name = given["images"][number]["file_name"]
    os.symlink(os.path.join(truth.image_root, file_name), root / "images" / file_name)


def stem(dataset, number):
    return os.path.splitext(content(dataset)["annotations"][number]["file_name"])[0]


def measured(dataset, number):
    """Class, area and box of the segments that are no crowd."""
    segments = content(dataset)["annotations"][number]["segments_info"]
    return sorted((s["category_id"], s["area"], s["bbox"]) for s in segments if not s["iscrowd"])


def change_size(root):
    save(root / "semantic" / "b.png", semantic()[:10])


def drop_png(root):
    (root / "semantic" / "b.png").unlink()


def drop_instance_png(root):
    (root / "numbers" / "a.png").unlink()


def unknown_value(root):
    labels = semantic()
    labels[0, :3] = 77
    save(root / "semantic" / "b.png", labels)


def coloured(root):
    save_noise(root / "semantic" / "b.png")


def damaged(root):
    data = (root / "semantic" / "b.png").read_bytes()
    (root / "semantic" / "b.png").write_bytes(data[: len(data) // 2])


def damaged_image(root):
    (root / "images" / "b.jpg").write_bytes(b"no image")


def instance_on_stuff(root):
    numbers = instance_numbers()
    numbers[16:] = 3
    save(root / "numbers" / "b.png", numbers)


def instance_on_void(root):
    numbers = instance_numbers()
    numbers[:, 29] = 3
    save(root / "numbers" / "b.png", numbers)


def same_stem(root):
    save_noise(root / "images" / "b.png")


def no_categories(root):
    (root / "categories.json").unlink()


def broken_categories(root):
    (root / "categories.json").write_text("[{]")


def category_without_kind(root):
    (root / "categories.json").write_text('[{"id": 1, "name": "sky"}]')


def category_255(root):
    (root / "categories.json").write_text(json.dumps([*CATEGORIES, {**CATEGORIES[0], "id": 255}]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_size, r"semantic/b.png is 30x10 .* but its image is 30x20"),
        (drop_png, r"Semantic PNG .*b.png not found. Every image NAME.jpg needs one"),
        (drop_instance_png, r"Instance PNG .*numbers/a.png not found"),
        (unknown_value, r"b.png has the value 77 in 3 pixels, .* --void"),
        (coloured, r"b.png has colours \(Pillow's mode RGB\)"),
        (damaged, r"semantic/b.png cannot be read, replace it"),
        (damaged_image, r"Image .*b.jpg cannot be read, replace it"),
        (instance_on_stuff, r"numbers/b.png: most of instance 3 is stuff, category 2"),
        (instance_on_void, r"numbers/b.png: most of instance 3 is void"),
        (same_stem, r"two images named b"),
        (no_categories, r"categories.json not found"),
        (broken_categories, r"categories.json is not valid JSON"),
        (category_without_kind, r"categories.json: .*has no isthing"),
        (category_255, r"255 is the id of a category and void at once.*--void"),
    ],
)
def test_wrong_files_are_named(root, damage, message):
    damage(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(root)
    assert not (root / "panoptic_train.json").exists()


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 77, "segmentation": box(1, 1, 5, 5)}, "annotation 1 has category_id 77"),
        ({"category_id": CAR, "segmentation": [[1, 1, 5, 5]]}, "three points or more"),
        ({"category_id": CAR, "segmentation": []}, "it has no polygon. A box alone"),
        ({"category_id": CAR, "segmentation": {"size": [9, 9], "counts": [81]}}, r"size is \[9, 9"),
        ({"category_id": CAR, "segmentation": [["x"] * 6]}, "annotation 1: the segmentation"),
        ({"category_id": CAR, "segmentation": None}, "annotation 1: the segmentation cannot"),
        ({"category_id": CAR}, "no instances JSON in COCO format: KeyError, 'segmentation'"),
        ({"category_id": CAR, "image_id": 8}, "no instances JSON"),
    ],
)
def test_wrong_annotations_are_named(root, annotation, message):
    instances = write_instances(root, [annotation])
    with pytest.raises(ValueError, match=message):
        convert(root, instances=instances)


def test_images_that_the_instances_list_not_or_twice(root):
    path = write_instances(root, [])
    save_noise(root / "images" / "c.jpg")
    with pytest.raises(ValueError, match=r"'images' does not list c.jpg of the image folder"):
        convert(root, instances=path)
    (root / "images" / "c.jpg").unlink()
    instances = json.loads((root / "instances.json").read_text())
    instances["images"].append({"id": 7, "file_name": "other/b.jpg"})
    (root / "instances.json").write_text(json.dumps(instances))
    with pytest.raises(ValueError, match=r"lists b.jpg more than once"):
        convert(root, instances=path)


def test_image_ids_are_those_of_the_instances(root):
    dataset = convert(root, instances=write_instances(root, []))
    assert [i["id"] for i in content(dataset)["images"]] == [5, 6]
    assert [a["image_id"] for a in content(dataset)["annotations"]] == [5, 6]


def test_instances_are_needed_once(root):
    with pytest.raises(ValueError, match="either an instances JSON or"):
        convert(root, instance_pngs=None)
    with pytest.raises(ValueError, match="Instance PNGs have no classes"):
        convert(root, semantic=None)
