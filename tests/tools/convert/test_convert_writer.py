"""What all converters share: going on after a kill, complete files only."""

import os
from collections import Counter

import numpy as np
import pytest
from converted import content, problems, save_noise
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from spatialflow.data import Categories
from spatialflow.tools.convert.compose import NO_LABEL, Object, compose, majority_labels
from spatialflow.tools.convert.writer import (
    Converted,
    Dataset,
    Job,
    image_entry,
    write_dataset,
)

CATEGORIES = Categories.from_json(
    [{"id": 3, "name": "car", "isthing": 1}, {"id": 0, "name": "road", "isthing": 0}]
)


@pytest.fixture
def dataset(tmp_path):
    for i in range(6):
        save_noise(tmp_path / "images" / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(str(i))
    paths = (str(tmp_path / p) for p in ("images", "panoptic", "panoptic.json"))
    return Dataset("some", *paths)


def jobs(dataset, **details):
    images = [os.path.join(dataset.image_root, f"{i}.png") for i in range(6)]
    folder = os.path.dirname(dataset.panoptic_json)
    return [
        Job(f"{i}.png", (os.path.join(folder, f"{i}.txt"),), {"image": path, **details})
        for i, path in enumerate(images)
    ]


def count_and_convert(job):
    """Converts, and leaves a mark for every conversion in a file beside the images' folder."""
    folder = os.path.dirname(job.sources[0])
    with open(os.path.join(folder, "converted.log"), "a") as f:
        f.write(f"{job.png}\n")
    if job.png in job.details.get("failing", []):
        raise ValueError(f"{job.png} is wrong")
    ids = np.full((20, 30), 70000)
    ids[:5] = 0
    segments = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in ((70000, 3), (5, 0))]
    return Converted(image_entry(job.details["image"]), ids, segments, Counter({"trees felled": 2}))


def die_at_4(job):
    if job.png == "4.png":
        os._exit(9)
    return count_and_convert(job)


def converted(dataset):
    log = os.path.join(os.path.dirname(dataset.panoptic_json), "converted.log")
    if not os.path.exists(log):
        return []
    with open(log) as f:
        names = f.read().split()
    os.remove(log)
    return names


def write(dataset, workers=1, convert=count_and_convert, **details):
    write_dataset(dataset, CATEGORIES, jobs(dataset, **details), convert, workers)


def test_areas_and_boxes_are_measured_and_empty_segments_left_out(dataset, capsys):
    write(dataset)
    assert problems(dataset) == set()
    assert content(dataset)["annotations"][2] == {
        "image_id": "2",
        "file_name": "2.png",
        "segments_info": [
            {"id": 70000, "category_id": 3, "iscrowd": 0, "area": 450, "bbox": [0, 5, 30, 15]}
        ],
    }
    assert "some: 12 trees felled." in capsys.readouterr().out


def test_a_second_run_keeps_what_is_finished(dataset, capsys):
    write(dataset)
    assert len(converted(dataset)) == 6
    first = content(dataset)
    os.remove(dataset.panoptic_json)
    os.remove(os.path.join(dataset.panoptic_root, "3.png"))
    write(dataset)
    assert converted(dataset) == ["3.png"]
    assert content(dataset) == first
    assert capsys.readouterr().out.count("some: 12 trees felled.") == 2


def test_a_run_goes_on_after_an_error(dataset):
    with pytest.raises(ValueError, match="4.png is wrong"):
        write(dataset, failing=["4.png"])
    assert converted(dataset) == [f"{i}.png" for i in range(5)]
    assert not os.path.exists(dataset.panoptic_json)
    assert sorted(os.listdir(dataset.panoptic_root)) == [f"{i}.png" for i in range(4)]
    with open(jobs(dataset)[4].sources[0], "w") as f:
        f.write("mended")
    with pytest.raises(ValueError, match="4.png is wrong"):
        write(dataset, failing=["4.png"])
    assert converted(dataset) == ["4.png"]


def test_changed_sources_and_details_are_converted_again(dataset):
    write(dataset)
    converted(dataset)
    with open(jobs(dataset)[2].sources[0], "w") as f:
        f.write("corrected")
    write(dataset)
    assert converted(dataset) == ["2.png"]
    write(dataset, uncovered="void")
    assert len(converted(dataset)) == 6


def test_foreign_and_damaged_pngs_are_replaced(dataset):
    write(dataset)
    converted(dataset)
    Image.new("RGB", (30, 20)).save(os.path.join(dataset.panoptic_root, "0.png"))
    with open(os.path.join(dataset.panoptic_root, "1.png"), "wb") as f:
        f.write(b"no PNG")
    write(dataset)
    assert converted(dataset) == ["0.png", "1.png"]


def test_missing_products_are_written_again(dataset, tmp_path):
    product = tmp_path / "product"
    given = [Job(j.png, j.sources, j.details, (str(product),)) for j in jobs(dataset)[:1]]
    product.write_text("")
    for expected in (["0.png"], []):
        write_dataset(dataset, CATEGORIES, given, count_and_convert, 1)
        assert converted(dataset) == expected
    product.unlink()
    write_dataset(dataset, CATEGORIES, given, count_and_convert, 1)
    assert converted(dataset) == ["0.png"]


def test_errors_of_workers_arrive(dataset):
    with pytest.raises(ValueError, match="4.png is wrong"):
        write(dataset, workers=2, failing=["4.png"])


def test_a_worker_that_dies_is_reported(dataset):
    with pytest.raises(OSError, match="A worker process died.*fewer --workers"):
        write(dataset, workers=2, convert=die_at_4)
    finished = [name for name in os.listdir(dataset.panoptic_root) if name.endswith(".png")]
    converted(dataset)
    write(dataset)
    assert set(converted(dataset)) == {f"{i}.png" for i in range(6)} - set(finished)
    assert problems(dataset) == set()


def test_compose_by_hand():
    labels = np.array([[0, 0, 3], [3, NO_LABEL, NO_LABEL]])
    object_map = np.array([[0, 2, 2], [0, 0, 5]])
    objects = {2: Object(3), 5: Object(3, 1)}
    ids, segments = compose(labels, object_map, objects, {3}, "crowd")
    kinds = {s["id"]: (s["category_id"], s["iscrowd"]) for s in segments}
    assert [kinds.get(i) for i in ids.ravel().tolist()] == [
        (0, 0), (3, 0), (3, 0), (3, 1), None, (3, 1)
    ]  # fmt: skip
    assert len(kinds) == 4
    assert ids[1, 1] == 0


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.int32, (4, 5), elements=st.integers(-1, 3)),
    arrays(np.int32, (4, 5), elements=st.integers(0, 3)),
    st.sampled_from(["crowd", "void"]),
)
def test_compose_gives_every_pixel_what_it_is(labels, object_map, uncovered):
    objects = {1: Object(2), 2: Object(3, 1), 3: Object(2)}
    ids, segments = compose(labels, object_map, objects, {2, 3}, uncovered)
    by_id = {s["id"]: s for s in segments}
    assert len(by_id) == len(segments)
    assert set(ids.ravel().tolist()) - {0} == set(by_id)
    owners = {}
    for id_, label, number in zip(ids.ravel(), labels.ravel(), object_map.ravel(), strict=True):
        if number:
            expected = (objects[number].category_id, objects[number].iscrowd)
        elif label == NO_LABEL or (label >= 2 and uncovered == "void"):
            expected = None
        else:
            expected = (label, int(label >= 2))
        found = by_id.get(id_)
        assert (found and (found["category_id"], found["iscrowd"])) == expected
        # A segment is one object, or all pixels of a label.
        assert (
            owners.setdefault(int(id_), number or -label - 2) == (number or -label - 2) or not id_
        )


def test_majority_of_an_object():
    labels = np.array([[1, 1, 2, 2, 2, NO_LABEL]])
    assert majority_labels(labels, np.array([[4, 4, 4, 6, 6, 6]])) == {4: 1, 6: 2}
    assert majority_labels(labels, np.array([[0, 0, 0, 0, 0, 9]])) == {9: NO_LABEL}
    assert majority_labels(labels, np.zeros((1, 6), int)) == {}
