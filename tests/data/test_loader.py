import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from panoptic_folder import SKY, scene, segment
from stand_ins import Branches

from spatialflow.data import (
    build_test_loader,
    build_train_loader,
    prepare_datasets,
    register_coco_panoptic,
)
from spatialflow.data.loader import TrainBatches
from spatialflow.evaluation import build_evaluator


@pytest.fixture
def train_cfg(cfg, empty_folder):
    """A config for a training set of 4 wide and 3 high images."""
    ids, segments = scene()
    for i in range(7):
        empty_folder.add(ids if i < 4 else ids.T, segments)
    register_coco_panoptic("own_train", *empty_folder.save().paths)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("own_train",)
    cfg.SEED = 3
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.MIN_SIZE_TRAIN = (20, 40)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    return cfg


def batches(cfg, count, start_iter=0):
    """Image ids, images and masks of the first batches."""
    loaded = itertools.islice(build_train_loader(cfg, start_iter), count)
    return [
        [(s["image_id"], s["image"], s["instances"].gt_masks.tensor) for s in batch]
        for batch in loaded
    ]


def assert_same(a, b):
    assert len(a) == len(b) and [len(x) for x in a] == [len(x) for x in b]
    for (id_a, *tensors_a), (id_b, *tensors_b) in zip(
        itertools.chain(*a), itertools.chain(*b), strict=True
    ):
        assert id_a == id_b
        assert all(torch.equal(x, y) for x, y in zip(tensors_a, tensors_b, strict=True))


def test_every_epoch_has_each_image_once():
    sampler = TrainBatches([0] * 6, batch_size=2, seed=0)
    stream = [index for batch in itertools.islice(sampler, 9) for _, index in batch]
    epochs = [stream[:6], stream[6:12], stream[12:]]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_batches_have_one_group_and_positions_are_never_used_twice():
    groups = [0, 1, 0, 0, 1, 0, 1]
    sampler = TrainBatches(groups, batch_size=3, seed=0)
    found = list(itertools.islice(sampler, 70))
    assert all(len({groups[index] for _, index in batch}) == 1 for batch in found)
    positions = [position for batch in found for position, _ in batch]
    assert len(set(positions)) == 210
    counts = Counter(index for batch in found for _, index in batch)
    assert set(counts) == set(range(7)) and max(counts.values()) - min(counts.values()) <= 2


def test_two_processes_share_the_batches_of_one():
    one = TrainBatches([0, 1] * 5, batch_size=4, seed=5)
    parts = [TrainBatches([0, 1] * 5, batch_size=4, seed=5, part=(rank, 2)) for rank in (0, 1)]
    for batch, first, second in itertools.islice(zip(one, *parts, strict=True), 10):
        assert batch == first + second


def test_aspect_ratios_are_grouped_when_asked(train_cfg):
    shapes = [{s[1].shape[1] < s[1].shape[2] for s in b} for b in batches(train_cfg, 8)]
    assert all(len(shape) == 1 for shape in shapes)
    train_cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    shapes = [{s[1].shape[1] < s[1].shape[2] for s in b} for b in batches(train_cfg, 8)]
    assert any(len(shape) == 2 for shape in shapes)


def test_batches_do_not_depend_on_the_number_of_workers(train_cfg):
    expected = batches(train_cfg, 6)
    for train_cfg.DATALOADER.NUM_WORKERS in (1, 2):
        assert_same(batches(train_cfg, 6), expected)


def test_batches_do_not_depend_on_the_number_of_processes(train_cfg, monkeypatch):
    expected = batches(train_cfg, 5)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(batches(train_cfg, 5))
    assert_same([a + b for a, b in zip(*parts, strict=True)], expected)


def test_a_resumed_run_goes_on_with_the_same_batches(train_cfg):
    assert_same(batches(train_cfg, 3, start_iter=4), batches(train_cfg, 7)[4:])


def test_batches_do_not_depend_on_random_numbers_drawn_elsewhere(train_cfg):
    expected = batches(train_cfg, 3)
    random.random(), np.random.rand(), torch.rand(1)
    assert_same(batches(train_cfg, 3), expected)


def test_loading_leaves_the_random_generators_alone(train_cfg):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    loader = iter(build_train_loader(train_cfg))
    seed()
    expected = [draw(), draw()]
    seed()
    first = draw()
    next(loader)
    assert [first, draw()] == expected


def test_augmentations_differ_between_epochs_and_seeds(train_cfg):
    sizes = {}
    for batch in batches(train_cfg, 20):
        for image_id, image, _ in batch:
            sizes.setdefault(image_id, set()).add(image.shape[1:])
    assert all(len(s) > 2 for s in sizes.values())
    ids = [[s[0] for s in b] for b in batches(train_cfg, 5)]
    train_cfg.SEED = 4
    assert [[s[0] for s in b] for b in batches(train_cfg, 5)] != ids


def test_a_negative_seed_is_a_random_one(train_cfg):
    train_cfg.SEED = -1
    ids = [[[s[0] for s in b] for b in batches(train_cfg, 6)] for _ in range(3)]
    assert not ids[0] == ids[1] == ids[2]


def test_a_batch_that_processes_cannot_share_is_refused(train_cfg, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH is 2, which 4 processes"):
        build_train_loader(train_cfg)


def test_other_samplers_are_refused(train_cfg):
    train_cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(ValueError, match="SAMPLER_TRAIN RepeatFactorTrainingSampler"):
        build_train_loader(train_cfg)


def test_an_empty_training_set_is_refused(cfg):
    with pytest.raises(ValueError, match="No image to train on in DATASETS.TRAIN"):
        build_train_loader(cfg)


@pytest.mark.parametrize("filter_empty, expected", [(True, {10, 11}), (False, {10, 11, 12})])
def test_images_of_stuff_alone_are_trained_on(cfg, empty_folder, filter_empty, expected):
    empty_folder.add(*scene())
    empty_folder.add(np.ones((20, 30), int), [segment(1, SKY)])
    empty_folder.add(np.zeros((20, 30), int), [])
    register_coco_panoptic("own_train", *empty_folder.save().paths)
    cfg.DATASETS.TRAIN = ("own_train",)
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    assert {s[0] for batch in batches(cfg, 2) for s in batch} == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unusable_file_is_named_by_the_loader(train_cfg, empty_folder, workers):
    for path in (empty_folder.root / "panoptic").iterdir():
        path.write_text("no picture")
    train_cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(ValueError, match=r"Panoptic PNG .*00\d.png is no PNG file"):
        next(iter(build_train_loader(train_cfg)))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_test_image_comes_once_and_in_order(train_cfg, monkeypatch, world_size):
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    ids = []
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        for batch in build_test_loader(train_cfg, "own_train"):
            assert len(batch) == 1 and "instances" not in batch[0]
            ids.append(batch[0]["image_id"])
    assert ids == list(range(10, 17))


@pytest.fixture
def parsed(monkeypatch):
    """Numbers of times that JSON files were parsed, by the text "info" in them."""
    times = Counter()
    loads = json.loads

    def counted(text, **kwargs):
        content = loads(text, **kwargs)
        if isinstance(content, dict) and isinstance(content.get("info"), str):
            times[content["info"]] += 1
        return content

    monkeypatch.setattr(json, "loads", counted)
    return times


def test_each_json_is_parsed_once_in_a_process(cfg, folder, parsed):
    images, pngs, _ = folder.paths
    for name in ("train", "val", "test"):
        folder.content["info"] = name
        (folder.root / f"{name}.json").write_text(json.dumps(folder.content))
    cfg.DATASETS.REGISTER = [
        [name, images, pngs, str(folder.root / f"{name}.json")] for name in ("train", "val")
    ]
    cfg.DATASETS.UNANNOTATED = [["test", images, str(folder.root / "test.json"), "val"]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("train",), ("val", "test")
    cfg.SOLVER.IMS_PER_BATCH = 1
    prepare_datasets(cfg)
    for start_iter in (0, 5):
        build_train_loader(cfg, start_iter)
    for _ in range(2):
        for name in cfg.DATASETS.TEST:
            assert len(build_test_loader(cfg, name)) == 2
            build_evaluator(Branches(), name, str(folder.root))
    assert parsed == {"train": 1, "val": 1, "test": 1}
