import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from spatialflow.data import PanopticMapper, load_dataset_dicts, prepare_datasets
from spatialflow.data.targets import index_map, read_panoptic_png
from spatialflow.tools.toy import STUFF, THINGS, ensure_toy_dataset, generate, make_scene

DIGEST = "e90a47b4071bd32dcf94f5bb4891af095e8ed232240ffbfa41be8014c376f73b"


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    generate(str(root), train=12, val=6)
    return root


def folder_digest(folder):
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def test_the_bytes_are_the_pinned_ones(toy_root):
    assert folder_digest(toy_root) == DIGEST


def test_the_command_line_writes_the_same(toy_root, tmp_path):
    command = [sys.executable, "-m", "spatialflow", "toy", "--root", str(tmp_path)]
    subprocess.run([*command, "--train", "12", "--val", "6"], check=True, capture_output=True)
    assert folder_digest(tmp_path) == folder_digest(toy_root)


def test_the_pngs_are_read_by_others(toy_root):
    scene = make_scene(0, "train", 3)
    image = np.asarray(Image.open(toy_root / "toy/train/00003.png"))
    np.testing.assert_array_equal(image, scene.image)
    ids = read_panoptic_png(str(toy_root / "toy/panoptic_train/00003.png"))
    np.testing.assert_array_equal(ids, scene.ids)


def test_scenes_differ_by_seed_split_and_number():
    keys = [(0, "train", 0), (1, "train", 0), (0, "val", 0), (0, "train", 1)]
    images = [make_scene(*key).image for key in keys]
    assert all((a != b).any() for i, a in enumerate(images) for b in images[:i])


def test_scenes_have_what_training_meets():
    scenes = [make_scene(0, "train", number) for number in range(120)]
    segments = [s for scene in scenes for s in scene.segments]
    assert {s["category_id"] for s in segments} == {*THINGS, *STUFF}
    assert {s["category_id"] for s in segments if s["iscrowd"]} == set(THINGS)
    assert any((scene.ids == 0).any() for scene in scenes)
    things = [sum(s["category_id"] in THINGS for s in scene.segments) for scene in scenes]
    assert max(things) >= 5
    for scene in scenes:
        index_map(scene.ids, scene.segments, "scene")  # the same ids on either side
        assert all((scene.ids == s["id"]).sum() >= 64 for s in scene.segments)


def test_the_scenes_are_ready_for_training(cfg, toy_root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_root))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("toy_panoptic_train",), ("toy_panoptic_val",)
    prepare_datasets(cfg)
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (4, 5)
    train, val = (load_dataset_dicts(f"toy_panoptic_{split}") for split in ("train", "val"))
    assert (len(train), len(val)) == (12, 6)
    mapper = PanopticMapper(cfg, is_train=True)
    for one in train:
        sample = mapper(one)
        things = [s for s in one["segments_info"] if s["isthing"] and not s["iscrowd"]]
        assert len(sample["instances"]) == len(things)
        for segment in one["segments_info"]:
            x, y, width, height = segment["bbox"]
            assert 0 < segment["area"] <= width * height and x >= 0 and y >= 0


def test_scenes_are_generated_once(tmp_path):
    ensure_toy_dataset(str(tmp_path), train=2, val=1)
    marker = tmp_path / "toy/train/00000.png"
    marker.write_bytes(b"")
    ensure_toy_dataset(str(tmp_path), train=2, val=1)
    assert marker.read_bytes() == b""
    ensure_toy_dataset(str(tmp_path), train=3, val=1)
    assert marker.read_bytes() != b""
    content = json.loads((tmp_path / "toy/panoptic_train.json").read_text())
    assert len(content["images"]) == 3
