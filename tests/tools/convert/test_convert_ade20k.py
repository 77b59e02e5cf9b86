"""ADE20K's semantic and instance PNGs into COCO panoptic format."""

from functools import partial

import numpy as np
import pytest
from converted import content, first_sample, maps, problems, save, save_noise

from spatialflow.cli import run_command
from spatialflow.tools.convert import ade20k, convert_ade20k

main = partial(run_command, "convert")

WALL, SKY, BED, CAR, FLAG = 1, 3, 8, 21, 150
CHALLENGE = {"BED": 1, "CAR": 9, "FLAG": 100}  # classes of the instance challenge


def object_info():
    """objectInfo150.txt: a header, then a row a class with tabs between its fields."""
    names = {WALL: "wall", SKY: "sky", BED: "bed ", CAR: "car, auto, automobile", FLAG: "flag"}
    rows = [f"{i}\t0.0{i}\t10\t1\t0\t{names.get(i, f'class {i}')}" for i in range(1, 151)]
    return "\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]) + "\n"


def semantic():
    """Sky over wall, unlabelled below, two cars and the rest of one, a bed."""
    labels = np.full((20, 30), SKY, np.uint8)
    labels[10:] = WALL
    labels[18:] = 0
    labels[8:14, 2:20] = CAR
    labels[12:16, 22:28] = BED
    return labels


def instances():
    """R: class of the 100, G: number, B: anything."""
    rgb = np.zeros((20, 30, 3), np.uint8)
    rgb[8:14, 2:8] = (CHALLENGE["CAR"], 1, 0)
    rgb[8:14, 8:16] = (CHALLENGE["CAR"], 2, 50)
    rgb[11:16, 22:28] = (CHALLENGE["BED"], 3, 0)  # a row more than the semantic PNG
    rgb[0, 0] = (CHALLENGE["FLAG"], 255, 0)
    return rgb


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        name = f"ADE_{short}_00000001"
        save_noise(root / "images" / split / f"{name}.jpg")
        save(root / "annotations" / split / f"{name}.png", semantic())
        save(root / "annotations_instance" / split / f"{name}.png", instances())
    (root / "objectInfo150.txt").write_text(object_info())
    return root


def convert(root, splits=ade20k.SPLITS):
    return convert_ade20k(str(root), splits, workers=1)


def test_100_things_and_50_stuff():
    assert len(ade20k.THINGS) == 100
    assert len(ade20k.STUFF) == 50
    # First, second, ninth and last class of the instance challenge: bed, window, car, flag.
    assert [ade20k.THINGS[i] for i in (0, 1, 8, 99)] == [8, 9, 21, 150]


def test_instances_win_and_things_without_one_are_void(root):
    train, val = convert(root)
    for dataset in (train, val):
        assert problems(dataset) == set()
        classes, crowd = maps(dataset)
        expected = semantic().astype(int)
        expected[18:] = -1
        expected[8:14, 16:20] = -1
        expected[11, 22:28] = BED
        expected[0, 0] = FLAG
        np.testing.assert_array_equal(classes, expected)
        assert not crowd.any()
    assert content(val)["images"][0]["id"] == "ADE_val_00000001"
    segments = content(train)["annotations"][0]["segments_info"]
    assert sorted(s["area"] for s in segments if s["category_id"] == CAR) == [36, 48]


def test_names_come_from_the_table(root):
    categories = {c["id"]: c for c in content(convert(root)[0])["categories"]}
    assert len(categories) == 150
    assert categories[BED]["name"] == "bed"
    assert categories[CAR]["name"] == "car"
    assert [categories[i]["isthing"] for i in (WALL, SKY, BED, CAR, FLAG)] == [0, 0, 1, 1, 1]


def test_training_gets_the_targets(root, cfg):
    sample = first_sample(convert(root, ["training"])[0], cfg)
    classes, boxes = sample["instances"].gt_classes, sample["instances"].gt_boxes.tensor
    assert sorted([c, *box] for c, box in zip(classes.tolist(), boxes.tolist(), strict=True)) == [
        [0, 22, 11, 28, 16],
        [8, 2, 8, 8, 14],
        [8, 8, 8, 16, 14],
        [99, 0, 0, 1, 1],
    ]
    # Wall, building, sky are stuff labels 1, 2, 3.
    assert sample["sem_seg"][[5, 17, 19, 9, 9], [5, 5, 5, 5, 17]].tolist() == [3, 1, 255, 0, 255]


def test_the_command_says_how_to_use_it(root, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))
    main(["ade20k", "--splits", "validation", "--workers", "1"])
    assert capsys.readouterr().out.endswith(
        'REGISTER:\n    - ["ade20k_panoptic_validation", '
        '"ADEChallengeData2016/images/validation", "ADEChallengeData2016/panoptic_validation", '
        '"ADEChallengeData2016/panoptic_validation.json"]\n'
    )


def no_instances(root):
    (root / "annotations_instance" / "training" / "ADE_train_00000001.png").unlink()


def no_semantic(root):
    (root / "annotations" / "training" / "ADE_train_00000001.png").unlink()


def no_images(root):
    (root / "images" / "training" / "ADE_train_00000001.jpg").unlink()


def no_table(root):
    (root / "objectInfo150.txt").unlink()


def short_table(root):
    (root / "objectInfo150.txt").write_text("\n".join(object_info().splitlines()[:100]))


def large_value(root):
    save(root / "annotations/training/ADE_train_00000001.png", np.full((20, 30), 151, np.uint8))


def grey_instances(root):
    save(root / "annotations_instance/training/ADE_train_00000001.png", semantic())


def two_classes(root):
    rgb = instances()
    rgb[8, 2, 0] = 5
    save(root / "annotations_instance/training/ADE_train_00000001.png", rgb)


def class_101(root):
    rgb = instances()
    rgb[rgb[..., 1] == 3, 0] = 101
    save(root / "annotations_instance/training/ADE_train_00000001.png", rgb)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_instances, r"Instance PNG .*00000001.png not found. .*annotations_instance.tar"),
        (no_semantic, r"Semantic PNG .*annotations/training/ADE_train_00000001.png not found"),
        (no_images, r"images/training has no image"),
        (no_table, r"objectInfo150.txt not found. The folder must be ADEChallengeData2016"),
        (short_table, r"objectInfo150.txt does not list the classes 1 to 150"),
        (large_value, r"00000001.png has the value 151; ADE20K has 0 to 150"),
        (grey_instances, r"00000001.png must be an RGB PNG; Pillow's mode of it is L"),
        (two_classes, r"instance 1 \(green\) has the class \[5, 9\]"),
        (class_101, r"instance 3 \(green\) has the class \[101\]"),
    ],
)
def test_wrong_files_are_named(root, damage, message):
    damage(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(root, ["training"])


def test_a_split_that_is_not_there(root):
    with pytest.raises(FileNotFoundError, match="Image folder .*images/testing not found"):
        convert(root, ["testing"])
