"""Damaged copies of datasets, one kind of damage each: the checker names it and where it is."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from panoptic_folder import CAR, SKY, PanopticFolder, write_cityscapes, write_ids
from PIL import Image

from spatialflow.data.categories import Categories
from spatialflow.data.coco_panoptic import load_coco_panoptic, read_panoptic_json
from spatialflow.data.register import PanopticFiles, find_panoptic_files
from spatialflow.data.targets import measure_segments, read_panoptic_png
from spatialflow.tools.check import Severity, check_dataset
from spatialflow.tools.check.problems import DESCRIPTIONS, Problem

EXPECTED_IN_SMALL_SETS = {"class_never_occurs", "stuff_in_pieces"}


@dataclass
class Dataset:
    """A copy that a test may damage; ``first`` is the first image's annotation."""

    images: Path
    panoptic: Path
    json: Path
    content: dict

    @property
    def first(self) -> dict:
        return self.content["annotations"][0]

    @property
    def image_entry(self) -> dict:
        return next(i for i in self.content["images"] if i["id"] == self.first["image_id"])

    @property
    def image(self) -> Path:
        return self.images / self.image_entry["file_name"]

    @property
    def png(self) -> Path:
        return self.panoptic / self.first["file_name"]

    def segment(self, isthing: bool) -> dict:
        kinds = {c["id"]: bool(c["isthing"]) for c in self.content["categories"]}
        segments = self.first["segments_info"]
        return next(s for s in segments if kinds[s["category_id"]] == isthing)

    def repaint(self, old: int, new: int) -> None:
        ids = read_panoptic_png(str(self.png))
        write_ids(self.png, np.where(ids == old, new, ids))

    def check(self, **kwargs) -> list[Problem]:
        self.json.write_text(json.dumps(self.content))
        files = PanopticFiles(str(self.images), str(self.panoptic), str(self.json))
        report = check_dataset(files, **kwargs)
        assert {p.kind for p in report.problems} <= DESCRIPTIONS.keys()
        return report.problems


def copy_dataset(root: Path, images: Path, panoptic: Path, content: dict) -> Dataset:
    """The first two images of a dataset, with areas and boxes."""
    copied = Dataset(root / "images", root / "panoptic", root / "panoptic.json", {})
    content = {k: copy.deepcopy(content[k]) for k in ("images", "annotations", "categories")}
    content["annotations"] = content["annotations"][:2]
    used = {a["image_id"] for a in content["annotations"]}
    content["images"] = [i for i in content["images"] if i["id"] in used]
    copied.content = content
    for folder in (copied.images, copied.panoptic):
        folder.mkdir(parents=True)
    for entry in content["images"]:
        shutil.copy(images / entry["file_name"], copied.images)
    for entry in content["annotations"]:
        shutil.copy(panoptic / entry["file_name"], copied.panoptic)
    return copied


@pytest.fixture(params=["own", "camvid", "coco_sample"])
def dataset(request, tmp_path, folder: PanopticFolder) -> Dataset:
    if request.param == "own":
        images, panoptic, _ = (Path(p) for p in folder.paths)
        content = folder.content
    elif request.param == "camvid":
        root = request.getfixturevalue("camvid")
        images, panoptic = root / "val", root / "panoptic_val"
        content = json.loads((root / "panoptic_val.json").read_bytes())
    else:
        root = request.getfixturevalue("coco_sample") / "coco"
        images, panoptic = root / "val2017", root / "panoptic_val2017"
        content = json.loads((root / "annotations" / "panoptic_val2017.json").read_bytes())
    copied = copy_dataset(tmp_path / "copy", images, panoptic, content)
    for annotation in copied.content["annotations"]:
        add_areas_and_boxes(copied.panoptic, annotation)
    return copied


def add_areas_and_boxes(folder: Path, annotation: dict) -> None:
    """Where the source has none; where it has, the same again is one more check of it."""
    ids = read_panoptic_png(str(folder / annotation["file_name"]))
    for s in annotation["segments_info"]:
        y, x = np.nonzero(ids == s["id"])
        s.setdefault("area", len(x))
        box = (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)
        s.setdefault("bbox", [int(v) for v in box])


# Each damage returns where the problem must be said to be: a file or place, and a segment's id.
Where = tuple[str | None, int | None]
DAMAGES: list[tuple[str, Callable[[Dataset], Where]]] = []


def damage(kind: str):
    def add(function: Callable[[Dataset], Where]) -> Callable[[Dataset], Where]:
        DAMAGES.append((kind, function))
        return function

    return add


@damage("image_missing")
def image_removed(d):
    d.image.unlink()
    return d.image.name, None


@damage("image_unreadable")
def image_truncated(d):
    d.image.write_bytes(d.image.read_bytes()[:-300])
    return d.image.name, None


@damage("image_unreadable")
def image_is_text(d):
    d.image.write_text("404 not found")
    return d.image.name, None


@damage("image_unreadable")
def image_is_empty(d):
    d.image.write_bytes(b"")
    return d.image.name, None


@damage("image_unreadable")
def image_is_a_folder(d):
    d.image.unlink()
    d.image.mkdir()
    return d.image.name, None


@damage("image_unreadable")
def image_name_with_nul(d):
    d.image_entry["file_name"] = "a\0b.jpg"
    return "a\0b.jpg", None


@damage("image_kind")
def image_has_16_bits(d):
    size = (d.image_entry["height"], d.image_entry["width"])
    Image.fromarray(np.full(size, 300, np.uint16)).save(d.image, format="PNG")
    return d.image.name, None


@damage("image_kind")
def image_has_floats(d):
    size = (d.image_entry["height"], d.image_entry["width"])
    Image.fromarray(np.ones(size, np.float32)).save(d.image, format="TIFF")
    return d.image.name, None


@damage("image_size_differs")
def image_turned_by_exif(d):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(d.image)
    image.load()
    image.save(d.image, exif=exif)
    return d.image.name, None


@damage("png_missing")
def png_removed(d):
    d.png.unlink()
    return d.png.name, None


@damage("png_unreadable")
def png_truncated(d):
    d.png.write_bytes(d.png.read_bytes()[:-30])
    return d.png.name, None


@damage("png_unreadable")
def png_with_a_flipped_byte(d):
    content = bytearray(d.png.read_bytes())
    content[len(content) // 2] ^= 255
    d.png.write_bytes(content)
    return d.png.name, None


@damage("png_unreadable")
def png_is_a_jpeg(d):
    Image.open(d.png).save(d.png, format="JPEG")
    return d.png.name, None


@damage("png_unreadable")
def png_is_a_folder(d):
    d.png.unlink()
    d.png.mkdir()
    return d.png.name, None


@damage("png_kind")
def png_is_grey(d):
    Image.open(d.png).convert("L").save(d.png)
    return d.png.name, None


@damage("png_kind")
def png_has_a_palette(d):
    Image.open(d.png).convert("P").save(d.png)
    return d.png.name, None


@damage("png_kind")
def png_has_16_bits(d):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(d.png)
    return d.png.name, None


@damage("png_size_differs")
def png_cropped(d):
    ids = read_panoptic_png(str(d.png))
    write_ids(d.png, np.vstack([ids, ids[-1:]]))
    return d.png.name, None


@damage("image_size_differs")
def json_swaps_width_and_height(d):
    entry = d.image_entry
    entry["width"], entry["height"] = entry["height"], entry["width"]
    return d.image.name, None


@damage("id_only_in_png")
def segment_left_out(d):
    removed = d.first["segments_info"].pop()
    return d.png.name, removed["id"]


@damage("id_only_in_json")
def segment_painted_void(d):
    id_ = d.segment(isthing=True)["id"]
    d.repaint(id_, 0)
    return d.png.name, id_


@damage("zero_area")
def segment_of_zero_area(d):
    new = {**d.segment(isthing=True), "id": 123, "area": 0, "bbox": [0, 0, 0, 0]}
    d.first["segments_info"].append(new)
    return d.png.name, 123


@damage("wrong_area")
def area_off_by_one(d):
    d.segment(isthing=False)["area"] += 1
    return d.png.name, d.segment(isthing=False)["id"]


@damage("wrong_area")
def area_is_nan(d):
    d.segment(isthing=True)["area"] = float("nan")
    return d.png.name, d.segment(isthing=True)["id"]


@damage("wrong_area")
def area_is_a_list(d):
    d.segment(isthing=True)["area"] = [1]
    return d.png.name, d.segment(isthing=True)["id"]


@damage("wrong_box")
def box_as_corners(d):
    s = d.segment(isthing=True)
    x, y, w, h = s["bbox"]
    s["bbox"] = [x, y, x + w, y + h]
    return d.png.name, s["id"]


@damage("wrong_box")
def box_is_null(d):
    d.segment(isthing=True)["bbox"] = None
    return d.png.name, d.segment(isthing=True)["id"]


@damage("unknown_category")
def category_unknown(d):
    s = d.segment(isthing=True)
    s["category_id"] = 4711
    return d.png.name, s["id"]


@damage("unknown_category")
def category_is_an_object(d):
    s = d.segment(isthing=True)
    s["category_id"] = {"id": 1}
    return d.png.name, s["id"]


@damage("segment_kind_differs")
def thing_marked_as_stuff(d):
    s = d.segment(isthing=True)
    s["isthing"] = 0
    return d.png.name, s["id"]


@damage("segment_kind_differs")
def stuff_marked_as_thing(d):
    s = d.segment(isthing=False)
    s["isthing"] = True
    return d.png.name, s["id"]


@damage("stuff_in_pieces")
def stuff_split_in_two(d):
    s = d.segment(isthing=False)
    ids = read_panoptic_png(str(d.png))
    y, x = (v[: len(v) // 2] for v in np.nonzero(ids == s["id"]))
    ids[y, x] = 123
    write_ids(d.png, ids)
    d.first["segments_info"] += [{"id": 123, "category_id": s["category_id"]}]
    del s["area"], s["bbox"]
    return d.png.name, None


@damage("crowd_stuff")
def crowd_of_stuff(d):
    s = d.segment(isthing=False)
    s["iscrowd"] = 1
    return d.png.name, s["id"]


@damage("bad_entry")
def crowd_is_text(d):
    s = d.segment(isthing=True)
    s["iscrowd"] = "yes"
    return d.png.name, s["id"]


@damage("duplicate_segment_id")
def segment_listed_twice(d):
    s = d.segment(isthing=True)
    d.first["segments_info"].append(dict(s))
    return d.png.name, s["id"]


@damage("bad_segment_id")
def segment_with_the_id_of_void(d):
    d.first["segments_info"].append({**d.segment(isthing=True), "id": 0})
    return None, None


@damage("bad_segment_id")
def segment_id_is_text(d):
    d.first["segments_info"].append({**d.segment(isthing=True), "id": "7"})
    return None, None


@damage("bad_segment_id")
def segment_id_of_four_bytes(d):
    d.first["segments_info"].append({**d.segment(isthing=True), "id": 2**24})
    return None, None


@damage("bad_entry")
def segment_is_a_number(d):
    d.first["segments_info"].append(5)
    return None, None


@damage("duplicate_image_id")
def image_listed_twice(d):
    d.content["images"].append(dict(d.image_entry))
    return d.image.name, None


@damage("duplicate_annotation")
def annotation_listed_twice(d):
    d.content["annotations"].append(copy.deepcopy(d.first))
    return d.png.name, None


@damage("image_without_annotation")
def annotation_removed(d):
    name = d.image.name
    del d.content["annotations"][0]
    return name, None


@damage("annotation_without_image")
def image_entry_removed(d):
    d.content["images"].remove(d.image_entry)
    return d.png.name, None


@damage("duplicate_file_name")
def two_images_of_one_file(d):
    other = next(i for i in d.content["images"] if i is not d.image_entry)
    d.image_entry["file_name"] = other["file_name"]
    return other["file_name"], None


@damage("file_outside_folder")
def image_name_is_absolute(d):
    d.image_entry["file_name"] = str(d.image)
    return str(d.image), None


@damage("file_outside_folder")
def png_name_leads_out(d):
    d.first["file_name"] = f"../panoptic/{d.png.name}"
    return d.first["file_name"], None


@damage("bad_entry")
def image_without_height(d):
    del d.image_entry["height"]
    return d.image.name, None


@damage("bad_entry")
def image_of_negative_width(d):
    d.image_entry["width"] = -3
    return d.image.name, None


@damage("bad_entry")
def image_name_is_a_number(d):
    d.image_entry["file_name"] = 5
    return "images[0]", None


@damage("bad_entry")
def image_id_is_a_list(d):
    d.image_entry["id"] = [1]
    return None, None


@damage("bad_entry")
def image_entry_is_null(d):
    d.content["images"].append(None)
    return f"images[{len(d.content['images']) - 1}]", None


@damage("bad_entry")
def annotation_is_a_list(d):
    d.content["annotations"].append([])
    return "annotations[2]", None


@damage("bad_entry")
def segments_info_is_missing(d):
    del d.first["segments_info"]
    return d.png.name, None


@damage("wholly_void")
def image_of_void(d):
    write_ids(d.png, np.zeros_like(read_panoptic_png(str(d.png))))
    d.first["segments_info"] = []
    return d.png.name, None


@damage("duplicate_category_id")
def category_listed_twice(d):
    d.content["categories"].append(dict(d.content["categories"][0]))
    return None, None


@damage("bad_category")
def category_without_isthing(d):
    d.content["categories"].append({"id": 5000, "name": "dog"})
    return None, None


@damage("bad_category")
def category_with_a_colour_by_name(d):
    d.content["categories"].append({"id": 5000, "name": "dog", "isthing": 1, "color": "red"})
    return None, None


@damage("bad_category")
def category_with_an_infinite_colour(d):
    color = [float("inf"), 0, 0]
    d.content["categories"].append({"id": 5000, "name": "dog", "isthing": 1, "color": color})
    return None, None


@damage("bad_category")
def category_is_a_name(d):
    d.content["categories"].append("dog")
    return None, None


@damage("no_thing_class")
def all_categories_are_stuff(d):
    for c in d.content["categories"]:
        c["isthing"] = 0
    return "categories", None


@damage("no_annotations")
def annotations_empty(d):
    d.content["annotations"] = []
    return None, None


@damage("unlisted_files")
def entries_of_an_image_removed(d):
    image_entry = d.image_entry
    del d.content["annotations"][0]
    d.content["images"].remove(image_entry)
    return None, None


@damage("json_unreadable")
def images_are_no_list(d):
    d.content["images"] = {"a": 1}
    return str(d.json), None


@pytest.mark.parametrize(("kind", "make"), DAMAGES, ids=[f.__name__ for _, f in DAMAGES])
def test_damage_is_named(dataset, kind, make):
    before = set(dataset.check())
    file, segment = make(dataset)
    new = [p for p in dataset.check() if p not in before]
    named = [p for p in new if p.kind == kind]
    assert named, new
    assert any(file in (None, p.file) and segment in (None, p.segment) for p in named), named


def test_sound_datasets_have_no_errors(dataset):
    problems = dataset.check()
    assert {p.kind for p in problems} <= EXPECTED_IN_SMALL_SETS
    assert all(p.severity is Severity.WARNING for p in problems)


@pytest.mark.parametrize(
    "make", [area_off_by_one, box_as_corners, crowd_of_stuff, image_of_void, stuff_split_in_two]
)
def test_what_can_be_trained_on_is_a_warning(dataset, make):
    make(dataset)
    assert not [p for p in dataset.check() if p.severity is Severity.ERROR]


def test_all_problems_are_reported_not_just_the_first(dataset):
    makes = [png_removed, image_removed, area_off_by_one, category_listed_twice, crowd_of_stuff]
    for make in makes:
        make(dataset)
    kinds = {p.kind for p in dataset.check()}
    assert kinds >= {"png_missing", "image_missing", "duplicate_category_id", "crowd_stuff"}


def test_workers_find_the_same(dataset):
    png_truncated(dataset)
    image_truncated(dataset)
    assert sorted(map(str, dataset.check(workers=2))) == sorted(map(str, dataset.check()))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"images": []}', "[" * 100_000, '{"a": "\xff"}', "\0"]
)
def test_no_panoptic_json(tmp_path, text):
    (tmp_path / "j.json").write_bytes(text.encode("latin-1"))
    report = check_dataset(PanopticFiles("i", "p", str(tmp_path / "j.json")))
    assert [p.kind for p in report.problems] == ["json_unreadable"]


@pytest.mark.parametrize("name", ["", "absent.json"])
def test_json_that_is_a_folder_or_absent(tmp_path, name):
    report = check_dataset(PanopticFiles("i", "p", str(tmp_path / name)))
    assert [p.kind for p in report.problems] == ["json_unreadable"]


ID = st.sampled_from([0, 3, 9, 70000])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "image_id", "file_name", "segments_info", "isthing", "name"]), x
        )
    ),
    max_leaves=8,
)


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "keys",
    [
        ("categories", 0),
        ("categories", 0, "name"),
        ("categories", 0, "color"),
        ("images", 0, "id"),
        ("images", 0, "extra"),
        ("annotations", 0),
        ("annotations", 0, "segments_info"),
        ("annotations", 0, "segments_info", 0),
        *(("annotations", 0, "segments_info", 0, k) for k in ("id", "area", "bbox", "isthing")),
    ],
)
def test_deeply_nested_values_are_survived(folder, keys, workers):
    content = copy.deepcopy(folder.content)
    parent = content
    for key in keys[:-1]:
        parent = parent[key]
    parent[keys[-1]] = "DEEP"
    path = folder.root / "deep.json"
    path.write_text(json.dumps(content).replace('"DEEP"', DEEP))
    report = check_dataset(PanopticFiles(*folder.paths[:2], str(path)), workers)
    assert "check_failed" not in {p.kind for p in report.problems}
    assert "json_unreadable" not in {p.kind for p in report.problems}


def die(*_, **__):
    os._exit(1)


def test_a_worker_that_dies_is_a_problem(folder, monkeypatch):
    monkeypatch.setattr("spatialflow.tools.check.check_pair", die)
    problems = check_dataset(PanopticFiles(*folder.paths), workers=2).problems
    assert "check_failed" in {p.kind for p in problems}


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_value_anywhere_is_survived(folder, data):
    content = copy.deepcopy(folder.content)
    entry = content[data.draw(st.sampled_from(sorted(content)))]
    key = data.draw(st.sampled_from(range(len(entry))))
    while isinstance(entry[key], (dict, list)) and entry[key] and data.draw(st.booleans()):
        entry = entry[key]
        key = data.draw(
            st.sampled_from(sorted(entry) if isinstance(entry, dict) else range(len(entry)))
        )
    entry[key] = data.draw(ANYTHING)
    path = folder.root / "any.json"
    path.write_text(json.dumps(content))
    report = check_dataset(PanopticFiles(*folder.paths[:2], str(path)))
    assert "check_failed" not in {p.kind for p in report.problems}
    report.as_text(verbose=True)
    report.write_json(str(folder.root / "out.json"))
    if report.trainable:
        categories = Categories.from_json(read_panoptic_json(str(path))["categories"])
        assert load_coco_panoptic(*folder.paths[:2], str(path), categories)


@pytest.mark.parametrize("kind", ["images", "panoptic"])
def test_any_truncation_of_a_file_is_survived(folder, kind):
    path = folder.root / kind / "000.png"
    content = path.read_bytes()
    files = PanopticFiles(*folder.paths)
    for length in (0, 1, 7, 8, 20, 26, 33, 40, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:length])
        kinds = [p.kind for p in check_dataset(files).problems]
        assert f"{'image' if kind == 'images' else 'png'}_unreadable" in kinds, length


def test_a_file_the_checker_fails_on_does_not_end_the_check(folder, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("spatialflow.tools.check.files.measure_segments", fail)
    problems = check_dataset(PanopticFiles(*folder.paths)).problems
    failed = [p for p in problems if p.kind == "check_failed"]
    assert [p.file for p in failed] == ["000.png", "001.png"]
    assert "out of luck" in failed[0].message


def test_statistics(folder):
    report = check_dataset(PanopticFiles(*folder.paths))
    assert (report.images, report.annotations) == (2, 2)
    assert report.void_share == 20 / 600
    car = next(c for c in report.classes if c.id == CAR)
    assert (car.images, car.segments, car.pixels) == (2, 2, 2 * 64)
    assert sum(c.pixels for c in report.classes) + report.void == report.total == 1200


def test_classes_of_the_registration_count(folder):
    registered = folder.content["categories"]
    folder.content["categories"] = copy.deepcopy(registered)
    for c in folder.content["categories"]:
        c["isthing"] = 1 if c["id"] == SKY else c["isthing"]
    folder.save()
    categories = Categories.from_json(registered)
    problems = check_dataset(PanopticFiles(*folder.paths, categories)).problems
    differs = [p for p in problems if p.kind == "category_kind_differs"]
    assert [p.message for p in differs] == [f"id {SKY}, 'sky': a thing in the JSON"]


def test_cityscapes_layout(tmp_path, monkeypatch):
    paths = write_cityscapes(tmp_path)
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    for key, path in zip(
        ("image_dir", "image_root", "panoptic_root", "panoptic_json"),
        (paths[0], *paths),
        strict=True,
    ):
        monkeypatch.setitem(metadata.__dict__, key, path)
    report = check_dataset(find_panoptic_files("cityscapes_fine_panoptic_val"))
    assert report.trainable
    assert {c.name: c.pixels for c in report.classes if c.pixels} == {"road": 20, "car": 4}


@given(arrays(np.int32, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=ID))
def test_measured_segments_are_those_of_masks(ids):
    found, areas, boxes = measure_segments(ids)
    assert found.tolist() == sorted(set(ids.ravel().tolist()))
    for id_, area, (x, y, w, h) in zip(found, areas, boxes, strict=True):
        ys, xs = np.nonzero(ids == id_)
        assert area == len(xs)
        assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
