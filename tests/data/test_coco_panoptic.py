import json
import os

import numpy as np
import pytest
from panoptic_folder import CATEGORIES, SKY, segment

from spatialflow.data.categories import Categories
from spatialflow.data.coco_panoptic import load_coco_panoptic, load_unannotated, read_panoptic_json


def load(folder):
    return load_coco_panoptic(*folder.paths, Categories.from_json(CATEGORIES))


def test_dicts_have_paths_sizes_and_the_models_classes(folder):
    folder.content["annotations"][0]["segments_info"][2].update(area=64, bbox=[4, 6, 8, 8])
    first, second = load(folder.save())
    images, pngs, _ = folder.paths
    segments = first.pop("segments_info")
    assert first == {
        "file_name": os.path.join(images, "000.png"),
        "image_id": 10,
        "height": 20,
        "width": 30,
        "pan_seg_file_name": os.path.join(pngs, "000.png"),
    }
    keys = ("id", "category_id", "isthing", "stuff_label", "iscrowd")
    assert [tuple(s[k] for k in keys) for s in segments] == [
        (1, 2, False, 2, 0),
        (256, 1, False, 1, 0),
        (70000, 0, True, 0, 0),
        (513, 1, True, 0, 1),
    ]
    assert (segments[2]["area"], segments[2]["bbox"]) == (64, [4, 6, 8, 8])
    assert second["image_id"] == 11


def test_files_may_lie_in_subfolders(empty_folder):
    for kind in ("images", "panoptic"):
        (empty_folder.root / kind / "town").mkdir()
    empty_folder.add(np.ones((4, 4), int), [segment(1, SKY)], name="town/a")
    (loaded,) = load(empty_folder.save())
    assert os.path.isfile(loaded["file_name"]) and os.path.isfile(loaded["pan_seg_file_name"])


def _segments(content):
    return content["annotations"][0]["segments_info"]


BAD_CONTENT = {
    "no annotations": (lambda c: c["annotations"].clear(), "dataset is empty"),
    "image without annotation": (
        lambda c: c["annotations"].pop(),
        "001.png of 'images' without annotation",
    ),
    "annotation without image": (
        lambda c: c["images"].pop(),
        "annotation of 001.png has image_id 11, which is not in 'images'",
    ),
    "image annotated twice": (
        lambda c: c["annotations"].append(c["annotations"][0]),
        "image 10 is annotated more than once",
    ),
    "unknown category": (
        lambda c: _segments(c)[1].update(category_id=7),
        "000.png: segment 256 has category id 7, .* categories .0, 5, 9, 20.",
    ),
    "duplicate segment": (
        lambda c: _segments(c)[1].update(id=1),
        "000.png: segment 1 is listed twice",
    ),
    "segment without id": (lambda c: _segments(c)[0].pop("id"), "000.png: segment None"),
    "segment id 0": (lambda c: _segments(c)[0].update(id=0), "from 1 to 2"),
    "no images list": (lambda c: c.pop("images"), "no list 'images'"),
    "no categories": (lambda c: c.pop("categories"), "no list 'categories'"),
    "image without size": (lambda c: c["images"][0].pop("width"), "'images' has no 'width'"),
    "annotation without segments": (
        lambda c: c["annotations"][0].pop("segments_info"),
        "'annotations' has no 'segments_info'",
    ),
}


@pytest.mark.parametrize("case", BAD_CONTENT)
def test_contradictions_in_the_json_are_named(folder, case):
    damage, message = BAD_CONTENT[case]
    damage(folder.content)
    with pytest.raises(ValueError, match=message) as e:
        load(folder.save())
    assert folder.paths[2] in str(e.value)


@pytest.mark.parametrize("key", ["images", "annotations"])
@pytest.mark.parametrize("name", ["{folder}/000.png", "../{kind}/000.png", "..\\000.png"])
def test_files_outside_the_folders_are_refused(folder, key, name):
    kind = {"images": "images", "annotations": "panoptic"}[key]
    name = name.format(folder=folder.root / kind, kind=kind)
    folder.content[key][0]["file_name"] = name
    with pytest.raises(ValueError, match="is not below its folder; write it relative") as e:
        load(folder.save())
    assert folder.paths[2] in str(e.value) and repr(name) in str(e.value)


def test_a_rule_for_image_names_cannot_lead_out_either(folder):
    def outside(image):
        return f"../images/{image['file_name']}"

    with pytest.raises(ValueError, match="'../images/000.png' is not below"):
        load_coco_panoptic(*folder.paths, Categories.from_json(CATEGORIES), outside)


def test_images_without_annotations_stay_in_their_folder_too(folder):
    folder.content["images"][1]["file_name"] = "../images/001.png"
    images, _, path = folder.save().paths
    with pytest.raises(ValueError, match="'../images/001.png' is not below"):
        load_unannotated(images, path)


@pytest.mark.parametrize("kind", ["images", "panoptic"])
def test_missing_files_are_named(folder, kind):
    (folder.root / kind / "001.png").unlink()
    with pytest.raises(FileNotFoundError, match="missing in .*: 001.png") as e:
        load(folder)
    assert str(folder.root / kind) in str(e.value)


def test_many_missing_files_are_counted(folder):
    for number in range(20):
        folder.content["images"][0]["file_name"] = "gone.png"
        entry = {**folder.content["images"][0], "id": 100 + number, "file_name": f"x{number}.png"}
        folder.content["images"].append(entry)
        annotation = {**folder.content["annotations"][0], "image_id": 100 + number}
        folder.content["annotations"].append(annotation)
    with pytest.raises(FileNotFoundError, match="gone.png, x0.png.* and 16 more"):
        load(folder.save())


@pytest.mark.parametrize("kind", ["images", "panoptic"])
def test_missing_folders_are_named(folder, kind):
    (folder.root / kind).rename(folder.root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"folder .*{kind} not found"):
        load(folder)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (
            json.dumps(
                {"images": [], "categories": [], "annotations": [{"segmentation": [], "bbox": []}]}
            ),
            "is an instances JSON",
        ),
    ],
)
def test_other_files_are_no_panoptic_json(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as e:
        read_panoptic_json(str(path))
    assert str(path) in str(e.value)


def test_a_missing_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="Panoptic JSON .*x.json not found"):
        read_panoptic_json(str(tmp_path / "x.json"))


def test_a_file_that_has_changed_is_read_again(folder):
    assert len(load(folder)) == len(load(folder)) == 2
    for key in ("images", "annotations"):
        folder.content[key].pop()
    assert len(load(folder.save())) == 1


def test_what_a_caller_changes_stays_with_the_caller(folder):
    load(folder)[0]["segments_info"].clear()
    assert len(load(folder)[0]["segments_info"]) == 4


class CountingPath(str):
    """A path that counts how often it is put into a text."""

    times = 0

    def __format__(self, spec):
        self.times += 1
        return super().__format__(spec)


def test_no_message_is_made_for_sound_segments(folder):
    images, pngs, panoptic_json = folder.paths
    path = CountingPath(panoptic_json)
    load_coco_panoptic(images, pngs, path, Categories.from_json(CATEGORIES))
    assert path.times == 0
