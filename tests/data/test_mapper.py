import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks
from panoptic_folder import CAR, PERSON, ROAD, SKY, scene, segment, write_ids
from PIL import Image
from recordings import OFFICIAL

from spatialflow.data import PanopticMapper, load_coco_panoptic
from spatialflow.data.categories import Categories
from spatialflow.data.mapper import ImageKindError, read_image


def load(folder):
    folder.save()
    return load_coco_panoptic(*folder.paths, Categories.from_json(folder.content["categories"]))


def read_png(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_without_augmentation_the_targets_are_the_annotation(cfg, folder):
    cfg.INPUT.RANDOM_FLIP = "none"
    (one, _) = load(folder)
    sample = PanopticMapper(cfg, True)(one)
    assert set(sample) == {
        *("image", "height", "width", "file_name", "image_id"),
        *("instances", "sem_seg", "crowd_mask"),
    }
    np.testing.assert_array_equal(
        sample["image"], read_png(one["file_name"])[..., ::-1].transpose(2, 0, 1)
    )
    ids, _ = scene()
    instances = sample["instances"]
    assert isinstance(instances.gt_masks, BitMasks) and instances.image_size == (20, 30)
    np.testing.assert_array_equal(instances.gt_masks.tensor, [ids == 70000])
    assert instances.gt_boxes.tensor.tolist() == [[4, 6, 12, 14]]
    assert instances.gt_classes.tolist() == [0] and instances.gt_classes.dtype == torch.int64
    labels = np.select([ids == 1, ids == 256, ids == 0], [2, 1, 255], 0)
    np.testing.assert_array_equal(sample["sem_seg"], labels)
    assert sample["sem_seg"].dtype == torch.int64
    assert sample["crowd_mask"].dtype == torch.bool
    box = BitMasks(sample["crowd_mask"][None]).get_bounding_boxes()
    assert box.tensor.tolist() == [[20, 2, 26, 5]]


def test_inference_samples_have_no_targets(cfg, folder):
    cfg.INPUT.MIN_SIZE_TEST = 40
    sample = PanopticMapper(cfg, False)(load(folder)[0])
    assert set(sample) == {"image", "height", "width", "file_name", "image_id"}
    assert sample["image"].shape == (3, 40, 60) and sample["image"].dtype == torch.uint8
    assert (sample["height"], sample["width"]) == (20, 30)


def test_inference_needs_no_panoptic_png(cfg, folder):
    one, _ = load(folder)
    Path(one["pan_seg_file_name"]).unlink()
    PanopticMapper(cfg, False)(one)


def test_the_dataset_dict_stays_as_it_is(cfg, folder):
    one, _ = load(folder)
    before = json.dumps(one)
    PanopticMapper(cfg, True)(one)
    assert json.dumps(one) == before


def _shows(pixels, value):
    """Whether pixels have a value of the test image, but for the blur at the regions' borders."""
    return pixels.numel() == 0 or ((pixels.float() - value).abs() < 40).float().mean() > 0.7


@pytest.mark.parametrize("resize_with", ["pil", "cv2"])
@pytest.mark.parametrize("crop", [False, True])
def test_augmented_targets_agree_with_each_other(cfg, empty_folder, resize_with, crop):
    """Stuff, masks and image show the same scene after flip, scaling and crop."""
    ids, segments = scene()
    ids[:, 26:] = 0
    ids[1:7, 16:26] = 513
    empty_folder.add(ids, segments)
    # The image shows the ids, so that it can be compared with the targets.
    grey = np.select([ids == 1, ids == 256, ids == 70000, ids == 513], [40, 80, 120, 160], 200)
    one = load(empty_folder)[0]
    Image.fromarray(np.stack([grey] * 3, -1).astype(np.uint8)).save(one["file_name"])
    cfg.INPUT.RESIZE_WITH = resize_with
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 80)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    cfg.INPUT.CROP.ENABLED = crop
    cfg.INPUT.CROP.SIZE = [0.8, 0.8]
    mapper = PanopticMapper(cfg, True)
    widths = set()
    for _ in range(8):
        sample = mapper(one)
        height, width = sample["image"].shape[1:]
        widths.add(width)
        assert sample["sem_seg"].shape == (height, width)
        shown = sample["image"][0]
        assert _shows(shown[sample["sem_seg"] == 255], 200)
        assert _shows(shown[sample["sem_seg"] == 2], 40)
        assert _shows(shown[sample["sem_seg"] == 1], 80)
        masks = sample["instances"].gt_masks
        (mask,) = masks.tensor
        assert _shows(shown[mask], 120)
        assert (sample["sem_seg"][mask] == 0).all()
        torch.testing.assert_close(
            sample["instances"].gt_boxes.tensor, masks.get_bounding_boxes().tensor
        )
        assert _shows(shown[sample["crowd_mask"]], 160)
    assert len(widths) > 3


@pytest.mark.parametrize("resize_with", ["pil", "cv2"])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("size", [(1, 400), (400, 1)])
def test_images_of_one_pixel_a_side_stay_so(cfg, empty_folder, resize_with, crop, size):
    """400 pixels become 40, and 1 would be rounded to 0."""
    ids = np.full(size, 70000)
    ids.reshape(-1)[:200] = 1
    empty_folder.add(ids, [segment(1, ROAD), segment(70000, CAR)])
    cfg.INPUT.RESIZE_WITH = resize_with
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (20,), 40
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 20, 40
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = crop, "absolute", [40, 40]
    one = load(empty_folder)[0]
    expected = tuple(max(1, n // 10) for n in size)
    sample = PanopticMapper(cfg, True)(one)
    assert sample["image"].shape[1:] == sample["sem_seg"].shape == expected
    assert (sample["sem_seg"] == 1).sum() == 20
    assert sample["instances"].gt_masks.tensor.sum() == 20
    assert PanopticMapper(cfg, False)(one)["image"].shape[1:] == expected


def test_the_crop_has_its_size_after_the_resize(cfg, folder):
    cfg.INPUT.MIN_SIZE_TRAIN = (80,)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [32, 48]
    sample = PanopticMapper(cfg, True)(load(folder)[0])
    assert sample["image"].shape[1:] == sample["sem_seg"].shape == (32, 48)


def test_things_outside_a_crop_are_gone(cfg, empty_folder):
    ids = np.ones((20, 40), int)
    ids[5:9, :8] = 5
    ids[5:9, 32:] = 6
    empty_folder.add(ids, [segment(1, ROAD), segment(5, CAR), segment(6, CAR, 1)])
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [20, 20]
    mapper, one = PanopticMapper(cfg, True), load(empty_folder)[0]
    found = [mapper(one) for _ in range(20)]
    assert {len(s["instances"]) for s in found} == {0, 1}
    assert {bool(s["crowd_mask"].any()) for s in found} == {False, True}


def test_more_than_255_segments_keep_apart(cfg, empty_folder):
    ids = np.arange(20 * 30).reshape(20, 30)
    segments = [segment(i, CAR if i % 2 else PERSON) for i in range(1, 600)]
    empty_folder.add(ids, segments)
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.RANDOM_FLIP = "none"
    for cfg.INPUT.RESIZE_WITH in ("pil", "cv2"):
        instances = PanopticMapper(cfg, True)(load(empty_folder)[0])["instances"]
        assert len(instances) == 599
        assert (instances.gt_masks.tensor.sum((1, 2)) == 4).all()
        assert instances.gt_boxes.tensor[298].tolist() == [58, 18, 60, 20]
        assert instances.gt_classes[298:300].tolist() == [0, 1]


@pytest.mark.parametrize(
    "category, iscrowd, things, crowds, label",
    [
        (SKY, 0, 0, 0, 2),
        (PERSON, 1, 0, 1, 0),
        (PERSON, 0, 1, 0, 0),
        (None, 0, 0, 0, 255),
    ],
    ids=["stuff only", "crowd only", "one pixel", "void only"],
)
def test_poor_images_have_valid_targets(
    cfg, empty_folder, category, iscrowd, things, crowds, label
):
    ids = np.zeros((20, 30), int)
    if category is not None:
        ids[7, 9] = 4
    empty_folder.add(ids, [] if category is None else [segment(4, category, iscrowd)])
    cfg.INPUT.RANDOM_FLIP = "none"
    sample = PanopticMapper(cfg, True)(load(empty_folder)[0])
    instances = sample["instances"]
    assert len(instances) == things and sample["crowd_mask"].sum() == crowds
    assert instances.gt_masks.tensor.shape == (things, 20, 30)
    assert instances.gt_boxes.tensor.tolist() == [[9, 7, 10, 8]] * things
    assert instances.gt_classes.dtype == torch.int64
    assert sample["sem_seg"][7, 9] == label
    assert (sample["sem_seg"] == 255).sum() >= 599


def test_exif_orientation_is_applied(cfg, empty_folder):
    empty_folder.add(*scene())
    one = load(empty_folder)[0]
    pixels = read_png(one["file_name"])
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees to be upright
    Image.fromarray(np.rot90(pixels)).save(one["file_name"], exif=exif)
    sample = PanopticMapper(cfg, False)(one)
    np.testing.assert_array_equal(sample["image"].numpy()[::-1], pixels.transpose(2, 0, 1))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:300])


DEEP_IMAGES = [
    ("a.png", np.uint16),
    ("a.tiff", np.uint16),
    ("a.tiff", ">u2"),
    ("a.tiff", np.int32),
    ("a.tiff", np.float32),
]


@pytest.mark.parametrize(("name", "dtype"), DEEP_IMAGES)
@pytest.mark.parametrize("image_format", ["BGR", "RGB", "L"])
def test_pixels_of_more_than_8_bits_are_refused(tmp_path, name, dtype, image_format):
    path = str(tmp_path / name)
    Image.fromarray(np.full((4, 5), 300, dtype)).save(path)
    with pytest.raises(ImageKindError, match="; convert it to 8 bits") as e:
        read_image(path, image_format)
    assert path in str(e.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_images_of_8_bits_of_every_kind_are_read(tmp_path, mode):
    path = str(tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr") else "a.png"))
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    assert (read_image(path, "BGR") == 255).all()


def test_an_image_too_large_for_pillow_is_named(tmp_path, monkeypatch):
    path = str(tmp_path / "a.png")
    Image.new("RGB", (50, 50)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"a\.png cannot be read, .*exceeds limit"):
        read_image(path, "BGR")


@pytest.mark.parametrize(
    "key, damage, message",
    [
        ("file_name", Path.unlink, "Image .* not found"),
        ("file_name", _truncate, "Image .* cannot be read"),
        ("file_name", lambda p: p.write_text("no image"), "Image .* cannot be read"),
        (
            "file_name",
            lambda p: Image.new("RGB", (31, 20)).save(p),
            r"[Mm]ismatched image shape .* got \(31, 20\), expect \(30, 20\)",
        ),
        ("pan_seg_file_name", Path.unlink, "Panoptic PNG .* not found"),
        (
            "pan_seg_file_name",
            lambda p: write_ids(p, np.ones((20, 31), int)),
            "is 31x20 .width x height., but its image .* is 30x20",
        ),
        (
            "pan_seg_file_name",
            lambda p: write_ids(p, np.where(scene()[0] == 256, 99, scene()[0])),
            r"in the PNG only: \[99\]; 1 in segments_info only: \[256\]",
        ),
    ],
)
def test_unusable_files_are_named(cfg, folder, key, damage, message):
    one, _ = load(folder)
    damage(Path(one[key]))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as e:
        PanopticMapper(cfg, True)(one)
    assert one[key] in str(e.value)


@pytest.mark.parametrize("resize_with", ["pil", "cv2"])
def test_a_fixed_size_distorts_image_and_targets_alike(cfg, folder, resize_with):
    cfg.INPUT.RESIZE_WITH, cfg.INPUT.FIXED_SIZE = resize_with, (50, 30)
    sample = PanopticMapper(cfg, True)(load(folder)[0])
    assert sample["image"].shape[1:] == sample["sem_seg"].shape == (50, 30)
    assert sample["instances"].image_size == (50, 30)
    assert sample["instances"].gt_masks.tensor.shape[1:] == (50, 30)
    assert PanopticMapper(cfg, False)(load(folder)[0])["image"].shape[1:] == (50, 30)


@pytest.mark.parametrize("size", [(400,), (0, 400), (400, 400, 3)])
def test_a_fixed_size_is_height_and_width(cfg, size):
    cfg.INPUT.FIXED_SIZE = size
    with pytest.raises(ValueError, match="INPUT.FIXED_SIZE is .*a height and a width"):
        PanopticMapper(cfg, True)


def test_an_unknown_resize_library_is_refused(cfg):
    cfg.INPUT.RESIZE_WITH = "magick"
    with pytest.raises(ValueError, match="INPUT.RESIZE_WITH .*'magick'"):
        PanopticMapper(cfg, True)


@pytest.fixture(scope="module")
def recorded():
    """Arrays of the authors' training pipeline: one image, its masks and labels, and the result."""
    return np.load(OFFICIAL / "misc.npz")


@pytest.fixture
def authors_mapper(cfg):
    manifest = json.loads((OFFICIAL / "manifest_misc.json").read_text())["misc"]
    long, short = manifest["train_pipeline"]["img_scale"]
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.RESIZE_WITH = "cv2"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (short,), long
    mapper = PanopticMapper(cfg, True)
    assert manifest["train_pipeline"]["flip"]
    mapper.augmentations.augs[-1].prob = 1.0
    return mapper


def test_the_authors_pipeline_gives_the_same_image_and_labels(recorded, authors_mapper, tmp_path):
    image, png = recorded["pipe/in_image_bgr"], recorded["pipe/in_seg_png"]
    label_of = recorded["seg_png_value_to_train_label"]
    Image.fromarray(image[..., ::-1]).save(tmp_path / "image.png")
    write_ids(tmp_path / "ids.png", png)
    keys = {"isthing": False, "iscrowd": 0}
    segments = [{"id": i, "stuff_label": label_of[i], **keys} for i in set(png.flat) - {0}]
    sample = authors_mapper(_dataset_dict(tmp_path, image.shape, segments))
    height, width = sample["image"].shape[1:]
    mean, std = np.array([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])
    normalised = (sample["image"].numpy().transpose(1, 2, 0) - mean) / std
    np.testing.assert_allclose(normalised, recorded["pipe/out_image"][:height, :width], atol=1e-5)
    assert (recorded["pipe/out_image"][height:] == 0).all()  # the rest is padding
    assert (recorded["pipe/out_image"][:, width:] == 0).all()
    np.testing.assert_array_equal(sample["sem_seg"], recorded["pipe/out_seg"][:height, :width])


def test_the_authors_pipeline_gives_the_same_masks(recorded, authors_mapper, tmp_path):
    Image.fromarray(recorded["pipe/in_image_bgr"]).save(tmp_path / "image.png")
    for mask, expected in zip(recorded["pipe/in_masks"], recorded["pipe/out_masks"], strict=True):
        write_ids(tmp_path / "ids.png", mask)
        thing = {"id": 1, "category_id": 0, "isthing": True, "stuff_label": 0, "iscrowd": 0}
        sample = authors_mapper(_dataset_dict(tmp_path, mask.shape, [thing]))
        masks = sample["instances"].gt_masks.tensor
        np.testing.assert_array_equal(masks[0], expected[: masks.shape[1], : masks.shape[2]])


def _dataset_dict(path, shape, segments):
    return {
        "file_name": str(path / "image.png"),
        "pan_seg_file_name": str(path / "ids.png"),
        "image_id": 0,
        "height": shape[0],
        "width": shape[1],
        "segments_info": segments,
    }


def test_sizes_after_the_resize_are_the_authors(recorded, cfg):
    cfg.INPUT.RESIZE_WITH = "cv2"
    for w, h, long, short, new_w, new_h in recorded["rescale/w_h_long_short_neww_newh"].tolist():
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = short, long
        resize = PanopticMapper(cfg, False).augmentations.augs[0]
        transform = resize.get_transform(np.broadcast_to(np.uint8(0), (h, w, 3)))
        assert (transform.new_w, transform.new_h) == (new_w, new_h)
