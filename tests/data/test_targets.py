import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from panoptic_folder import write_ids
from PIL import Image

from spatialflow.data.targets import (
    crowd_mask,
    index_map,
    read_panoptic_png,
    stuff_labels,
    thing_masks,
)


def thing(id_, category_id=0, iscrowd=0):
    return {
        "id": id_,
        "category_id": category_id,
        "isthing": True,
        "stuff_label": 0,
        "iscrowd": iscrowd,
    }


def stuff(id_, label):
    return {
        "id": id_,
        "category_id": label,
        "isthing": False,
        "stuff_label": label,
        "iscrowd": 0,
    }


def test_png_is_read_whoever_wrote_it(tmp_path):
    ids = np.repeat(np.random.default_rng(0).integers(0, 2**24, (40, 15)), 4, axis=1)
    write_ids(tmp_path / "a.png", ids)
    image = Image.open(tmp_path / "a.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.save(tmp_path / "key.png", transparency=image.getpixel((5, 5)))
    cv2.imwrite(str(tmp_path / "cv2.png"), np.asarray(image)[..., ::-1])
    for name in ("a", "alpha", "key", "cv2"):
        assert (read_panoptic_png(str(tmp_path / f"{name}.png")) == ids).all(), name


def test_png_is_read_into_what_an_earlier_call_returned(tmp_path):
    first, second, other = (
        np.random.default_rng(i).integers(0, 2**24, size)
        for i, size in enumerate([(4, 6), (4, 6), (6, 4)])
    )
    for name, ids in (("first", first), ("second", second), ("other", other)):
        write_ids(tmp_path / f"{name}.png", ids)
    buffer = read_panoptic_png(str(tmp_path / "first.png"))
    read = read_panoptic_png(str(tmp_path / "second.png"), buffer)
    assert (read == second).all() and np.shares_memory(read, buffer)
    read = read_panoptic_png(str(tmp_path / "other.png"), buffer)
    assert (read == other).all() and (buffer == second).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_png_is_not_turned_by_exif(tmp_path, mode, orientation):
    path = tmp_path / "a.png"
    ids = np.random.default_rng(0).integers(0, 2**24, (20, 30))
    write_ids(path, ids)
    exif = Image.Exif()
    exif[274] = orientation
    Image.open(path).convert(mode).save(path, exif=exif)
    np.testing.assert_array_equal(read_panoptic_png(str(path)), ids)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_size_that_the_file_cannot_hold_is_not_decoded(tmp_path, mode, monkeypatch):
    path = tmp_path / "a.png"
    Image.new(mode, (60, 40)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    calls = []
    for decoder in ("decode_image_png_u8", "cv2.imdecode"):
        monkeypatch.setattr(f"spatialflow.data.targets.{decoder}", lambda *_: calls.append(_))
    with pytest.raises(ValueError, match=r"a\.png is damaged"):
        read_panoptic_png(str(path))
    assert not calls


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_most_compressible_png_is_read(tmp_path, mode):
    path = tmp_path / "a.png"
    Image.new(mode, (6000, 4000)).save(path, compress_level=9)
    assert not read_panoptic_png(str(path)).any()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "header only", "huge"])
def test_damaged_png_is_named(tmp_path, mode, damage):
    path = tmp_path / "a.png"
    write_ids(path, np.random.default_rng(0).integers(0, 2**24, (40, 60)))
    Image.open(path).convert(mode).save(path)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 255
    elif damage == "huge":
        data[16:24] = b"\x7f\xff\xff\xff" * 2
    path.write_bytes(data[: {"truncated": -40, "header only": 40}.get(damage)])
    with pytest.raises(ValueError, match=r"a\.png is damaged"):
        read_panoptic_png(str(path))


def test_ids_are_read_from_all_three_channels(tmp_path):
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]])
    write_ids(tmp_path / "a.png", ids)
    read = read_panoptic_png(str(tmp_path / "a.png"))
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, ids)


def test_alpha_is_ignored(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (7, 1, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_panoptic_png(str(tmp_path / "a.png")), [[263, 0], [0, 0]])


def _write_bad_png(path, kind):
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    if kind == "text":
        path.write_text("not a picture")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "grey":
        grey.save(path)
    elif kind == "palette":
        grey.convert("P").save(path)
    elif kind == "16-bit":
        Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(path)
    elif kind == "damaged":
        write_ids(path, np.random.randint(0, 2**24, (50, 50)))
        path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", "not found"),
        ("text", "no PNG"),
        ("empty", "no PNG"),
        ("grey", "8-bit RGB"),
        ("palette", "8-bit RGB"),
        ("16-bit", "8-bit RGB"),
        ("damaged", "damaged"),
    ],
)
def test_unusable_pngs_are_named(tmp_path, kind, message):
    path = tmp_path / "broken.png"
    _write_bad_png(path, kind)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as e:
        read_panoptic_png(str(path))
    assert str(path) in str(e.value)


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.int32, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=st.integers(0, 5))
)
def test_index_map_numbers_segments_in_their_order(numbers):
    ids_of_numbers = np.array([0, 900, 3, 2**24 - 1, 256, 70000])
    present = sorted(set(numbers.flat) - {0}, reverse=True)
    segments = [thing(int(ids_of_numbers[n])) for n in present]
    index = index_map(ids_of_numbers[numbers], segments, "x.png")
    for i, n in enumerate(present):
        np.testing.assert_array_equal(index == i + 1, numbers == n)
    np.testing.assert_array_equal(index == 0, numbers == 0)


@pytest.mark.parametrize("count, dtype", [(255, np.uint8), (256, np.uint16)])
def test_index_map_has_room_for_all_segments(count, dtype):
    ids = np.arange(count + 1).reshape(1, -1)
    index = index_map(ids, [thing(i) for i in range(1, count + 1)], "x.png")
    assert index.dtype == dtype
    np.testing.assert_array_equal(index, ids)


@pytest.mark.parametrize(
    "ids_in_json, message",
    [
        ([1, 2], r"1 in the PNG only: \[3\]"),
        ([1, 2, 3, 4], r"1 in segments_info only: \[4\]"),
        ([1, 2, 5], r"in the PNG only: \[3\]; 1 in segments_info only: \[5\]"),
    ],
)
def test_different_ids_in_png_and_json_are_named(ids_in_json, message):
    with pytest.raises(ValueError, match=message) as e:
        index_map(np.array([[0, 1, 2, 3]]), [thing(i) for i in ids_in_json], "some/x.png")
    assert "some/x.png" in str(e.value)


def test_targets_of_a_hand_made_map():
    index = np.array(
        [
            [1, 1, 1, 4, 4],
            [1, 2, 3, 4, 4],
            [1, 2, 2, 0, 4],
        ],
        np.uint8,
    )
    segments = [stuff(1, 6), thing(2, 1), thing(3, 0), thing(4, 0, iscrowd=1), thing(5, 1)]
    masks, boxes, classes = thing_masks(index, segments)
    # Segment 5 has no pixel, as after a crop; segment 3 has one.
    np.testing.assert_array_equal(masks, [index == 2, index == 3])
    np.testing.assert_array_equal(boxes, [[1, 1, 3, 3], [2, 1, 3, 2]])
    np.testing.assert_array_equal(classes, [1, 0])
    np.testing.assert_array_equal(crowd_mask(index, segments), index == 4)
    np.testing.assert_array_equal(
        stuff_labels(index, segments), [[6, 6, 6, 0, 0], [6, 0, 0, 0, 0], [6, 0, 0, 255, 0]]
    )


@pytest.mark.parametrize("segments", [[], [stuff(1, 3)], [thing(1, iscrowd=1)]])
def test_images_without_things_have_empty_targets(segments):
    index = np.full((4, 5), len(segments), np.uint8)
    masks, boxes, classes = thing_masks(index, segments)
    assert masks.shape == (0, 4, 5) and masks.dtype == bool
    assert boxes.shape == (0, 4) and boxes.dtype == np.float32
    assert classes.shape == (0,) and classes.dtype == np.int64
    assert stuff_labels(index, segments)[0, 0] == (segments[0]["stuff_label"] if segments else 255)


def test_things_keep_their_own_stuff_label_where_the_dataset_has_one():
    segments = [{**thing(1, category_id=2), "stuff_label": 13}]
    assert stuff_labels(np.ones((1, 1), np.uint8), segments).item() == 13
