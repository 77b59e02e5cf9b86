"""CamVid in its original layout and in the SegNet tutorial's into COCO panoptic format."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from converted import content, maps, problems, save, save_noise
from PIL import Image

from spatialflow.cli import run_command
from spatialflow.data.categories import Categories
from spatialflow.tools.convert import convert_camvid
from spatialflow.tools.convert.camvid import SPLITS, split_of

main = partial(run_command, "convert")

SKY, ROAD, CAR, PEDESTRIAN = 1, 4, 9, 10
# fmt: off
COLORS = {
    "Animal": (64, 128, 64), "Archway": (192, 0, 128), "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64), "Building": (128, 0, 0), "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192), "Child": (192, 128, 64), "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64), "MotorcycleScooter": (192, 0, 192), "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128), "Pedestrian": (64, 64, 0), "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192), "Sidewalk": (0, 0, 192), "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128), "SUVPickupTruck": (64, 128, 192), "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64), "Train": (192, 64, 128), "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192), "Tunnel": (64, 0, 64), "VegetationMisc": (192, 192, 0),
    "Void": (0, 0, 0), "Wall": (64, 192, 0),
}
# fmt: on
STEMS = {"train": "0001TP_006690", "val": "0016E5_07959", "test": "Seq05VD_f00000"}


def class_names():
    """(20, 30) names of original classes: two cars that a pole parts, a child that is too small."""
    names = np.full((20, 30), "Sky", object)
    names[8:] = "LaneMkgsDriv"
    names[10:16, 2:10] = "Car"
    names[10:16, 12:20] = "Truck_Bus"
    names[4:18, 11] = "Column_Pole"
    names[2:4, 25:28] = "Child"
    names[16:20, 20:30] = "Pedestrian"
    names[19] = "Void"
    return names


def expected_classes():
    """The category ids of :func:`class_names`, -1 for void."""
    ids = {"Sky": 1, "LaneMkgsDriv": 4, "Car": 9, "Truck_Bus": 9, "Column_Pole": 3}
    ids |= {"Child": -1, "Pedestrian": 10, "Void": -1}
    return np.vectorize(ids.get)(class_names())


def save_original(root, stem):
    save_noise(root / "701_StillsRaw_full" / f"{stem}.png")
    rgb = np.array([COLORS[n] for n in class_names().flat], np.uint8).reshape(20, 30, 3)
    save(root / "LabeledApproved_full" / f"{stem}_L.png", rgb)


@pytest.fixture
def original(tmp_path):
    root = tmp_path / "CamVid"
    for stem in STEMS.values():
        save_original(root, stem)
    rows = [f"{r} {g} {b}\t\t{name}" for name, (r, g, b) in COLORS.items()]
    (root / "label_colors.txt").write_text("\r\n".join(rows) + "\r\n\r\n")
    return root


@pytest.fixture
def tutorial(tmp_path):
    root = tmp_path / "SegNet" / "CamVid"
    for split, stem in STEMS.items():
        save_noise(root / split / f"{stem}.png")
        values = expected_classes() - 1
        values[2:4, 25:28] = PEDESTRIAN - 1
        values[19] = 11
        save(root / f"{split}annot" / f"{stem}.png", values.astype(np.uint8))
    return root


def convert(root, splits=SPLITS, max_size=480, output="camvid_panoptic"):
    return convert_camvid(str(root), str(root.parent / output), splits, max_size, workers=1)


@pytest.mark.parametrize("layout", ["original", "tutorial"])
def test_both_layouts__same_segments__no_problems(layout, request):
    root = request.getfixturevalue(layout)
    for split, dataset in zip(SPLITS, convert(root), strict=True):
        assert problems(dataset) == set()
        classes, crowd = maps(dataset)
        np.testing.assert_array_equal(classes, expected_classes())
        assert not crowd.any()
        (image,) = content(dataset)["images"]
        assert (image["id"], image["width"]) == (STEMS[split], 30)
        areas = {}
        for s in content(dataset)["annotations"][0]["segments_info"]:
            areas.setdefault(s["category_id"], []).append(s["area"])
        assert sorted(areas[CAR]) == [48, 48]
        assert areas[PEDESTRIAN] == [30]


def test_classes_are_those_of_the_configs_data(original, camvid):
    (dataset,) = convert(original, ["train"])
    theirs = json.loads((camvid / "panoptic_train.json").read_text())["categories"]
    assert content(dataset)["categories"] == Categories.from_json(theirs).as_json()


def test_output_has_the_names_of_configs_camvid(tutorial):
    convert(tutorial, ["train"])
    output = tutorial.parent / "camvid_panoptic"
    image = output / "train" / f"{STEMS['train']}.png"
    assert image.read_bytes() == (tutorial / "train" / image.name).read_bytes()
    assert (output / "panoptic_train" / image.name).is_file()
    assert (output / "panoptic_train.json").is_file()


def test_large_images__smaller_with_their_labels(original):
    (dataset,) = convert(original, ["val"], max_size=15)
    (entry,) = content(dataset)["images"]
    assert (entry["height"], entry["width"]) == (10, 15)
    with Image.open(Path(dataset.image_root) / entry["file_name"]) as image:
        assert image.size == (15, 10)
    assert problems(dataset) == set()
    classes, _ = maps(dataset)
    assert (classes == CAR).sum() == 0  # 12 pixels each now: void
    assert (classes == ROAD).any()


def test_regions_that_touch_at_a_corner_are_one(original):
    rgb = np.full((20, 30, 3), COLORS["Road"], np.uint8)
    rgb[0:6, 0:6] = rgb[6:12, 6:12] = COLORS["Car"]
    save(original / "LabeledApproved_full" / f"{STEMS['train']}_L.png", rgb)
    (dataset,) = convert(original, ["train"])
    segments = content(dataset)["annotations"][0]["segments_info"]
    assert [s["area"] for s in segments if s["category_id"] == CAR] == [72]


def test_colours_of_no_class_are_void_and_counted(original, capsys):
    path = original / "LabeledApproved_full" / f"{STEMS['train']}_L.png"
    with Image.open(path) as image:
        rgb = np.array(image)
    rgb[0, :5] = (26, 26, 26)
    save(path, rgb)
    (dataset,) = convert(original, ["train"])
    assert (maps(dataset)[0][0, :6] == [-1] * 5 + [SKY]).all()
    assert "5 pixels of colours that label_colors.txt does not have" in capsys.readouterr().out


@pytest.mark.parametrize(
    "stem, split",
    [
        ("0001TP_008520", "train"),
        ("0001TP_008550", "test"),
        ("0006R0_f00930", "train"),
        ("0016E5_07950", "train"),
        ("0016E5_07959", "val"),
        ("0016E5_08159", "val"),
        ("0016E5_08160", "train"),
        ("Seq05VD_f05100", "test"),
    ],
)
def test_split_of_the_original_layout(stem, split):
    assert split_of(stem) == split


def test_split__as_in_the_common_lists(real_camvid):
    for split, count in (("train", 367), ("val", 101)):
        images = json.loads((real_camvid / f"panoptic_{split}.json").read_text())["images"]
        stems = [Path(i["file_name"]).stem for i in images]
        assert len(stems) == count
        assert {split_of(stem) for stem in stems} == {split}


def test_the_command_says_how_to_use_it(tutorial, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tutorial.parent))
    main(["camvid", "--root", str(tutorial), "--splits", "val", "--workers", "1"])
    assert capsys.readouterr().out.endswith(
        'REGISTER:\n    - ["camvid_panoptic_val", "camvid_panoptic/val", '
        '"camvid_panoptic/panoptic_val", "camvid_panoptic/panoptic_val.json"]\n'
    )


def no_label(root):
    (root / "LabeledApproved_full" / f"{STEMS['train']}_L.png").unlink()


def no_table(root):
    (root / "label_colors.txt").unlink()


def broken_table(root):
    (root / "label_colors.txt").write_text("64 128 Animal\n")


def short_table(root):
    (root / "label_colors.txt").write_text("128 128 128 Sky\n")


def strange_name(root):
    save_original(root, "holiday_1")


def no_image_of_the_split(root):
    (root / "701_StillsRaw_full" / f"{STEMS['train']}.png").unlink()


def neither_layout(root):
    (root / "LabeledApproved_full").rename(root / "labels")


@pytest.mark.parametrize(
    "damage, message",
    [
        (no_label, "Label PNG .*0001TP_006690_L.png not found. --root names a folder with 701_"),
        (no_table, "Class table .*label_colors.txt not found"),
        (broken_table, "label_colors.txt, line 1: '64 128 Animal' is not 'R G B name'"),
        (short_table, "label_colors.txt has no class Animal"),
        (strange_name, "Image holiday_1 has no name of CamVid's"),
        (no_image_of_the_split, "701_StillsRaw_full has no image of the split train"),
        (neither_layout, "has no LabeledApproved_full and no trainannot"),
    ],
)
def test_wrong_files_are_named(original, damage, message):
    damage(original)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(original, ["train"])


def test_a_value_above_void(tutorial):
    save(tutorial / "trainannot" / f"{STEMS['train']}.png", np.full((20, 30), 12, np.uint8))
    with pytest.raises(ValueError, match="0001TP_006690.png has the value 12; .*0 to 11"):
        convert(tutorial, ["train"])


def test_output_over_the_dataset_is_refused(tutorial):
    with pytest.raises(ValueError, match="would be written over the input"):
        convert(tutorial, ["train"], output="CamVid")
