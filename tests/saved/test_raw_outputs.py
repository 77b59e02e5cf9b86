"""Raw outputs on disk: they come back as they were, and merge as the model merged them."""

import json

import numpy as np
import pytest
import torch
from detectron2.layers import mask_ops
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from panoptic_scenes import perfect_output, two_images
from raw_scenes import evaluate_noisy
from tiny_runs import tiny_config

from spatialflow.engine import Trainer
from spatialflow.evaluation import PanopticGroundTruth
from spatialflow.evaluation.raw_outputs import RawOutputWriter
from spatialflow.modeling.panoptic import HeuristicMerge
from spatialflow.saved.raw_outputs import (
    INDEX,
    RawOutputs,
    load_raw_output,
    save_raw_output,
)
from spatialflow.tools.sweep import sweep


def random_output(seed, n, height, width):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(torch.rand(n, 4, generator=generator) * 50 - 5)
    instances.scores = torch.rand(n, generator=generator)
    instances.pred_classes = torch.randint(0, 80, (n,), generator=generator)
    instances.pred_masks = torch.rand(n, height, width, generator=generator) > 0.6
    return instances, torch.randint(0, 255, (height, width), generator=generator)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(0, 4), st.integers(1, 9), st.integers(1, 9))
def test_round_trip_is_exact(tmp_path_factory, seed, n, height, width):
    instances, labels = random_output(seed, n, height, width)
    path = str(tmp_path_factory.mktemp("raw") / "folder" / "a.npz")
    save_raw_output(path, instances, labels)
    loaded, loaded_labels = load_raw_output(path)
    assert loaded.image_size == (height, width)
    assert torch.equal(loaded.pred_boxes.tensor, instances.pred_boxes.tensor)
    for name in ("scores", "pred_classes", "pred_masks"):
        assert torch.equal(loaded.get(name), instances.get(name)), name
        assert loaded.get(name).dtype == instances.get(name).dtype
    assert torch.equal(loaded_labels, labels) and loaded_labels.dtype == torch.int64


def test_what_other_merges_read_makes_the_round_trip_too(tmp_path):
    instances, _ = random_output(3, 2, 5, 7)
    instances.pred_mask_probs = torch.rand(2, 28, 28)
    maps = torch.randint(0, 255, (4, 5, 7))
    path = str(tmp_path / "a.npz")
    save_raw_output(path, instances, maps)
    loaded, loaded_maps = load_raw_output(path)
    assert torch.equal(loaded_maps, maps)
    assert torch.equal(loaded.pred_mask_probs, instances.pred_mask_probs)
    assert torch.equal(loaded.pred_masks, instances.pred_masks)


def test_merged_again_it_is_what_was_evaluated(register, tmp_path):
    results = evaluate_noisy(register, tmp_path)
    raw = RawOutputs.open(str(tmp_path))
    (counts,) = sweep(raw, [raw.merge])
    again = counts.results()
    assert 0 < results["PQ"] < 100
    for key, group in (("PQ", "All"), ("PQ_th", "Things"), ("PQ_st", "Stuff")):
        assert 100 * again[group]["pq"] == pytest.approx(results[key], abs=1e-12)


def test_trainer_writes_them_when_asked(toy_datasets, tmp_path):
    cfg = tiny_config(toy_datasets, tmp_path, overrides=["TEST.SAVE_RAW_OUTPUTS", True])
    model = Trainer.build_model(cfg)
    results = Trainer.test(cfg, model)
    folder = tmp_path / "inference" / "tiny_val"
    raw = RawOutputs.open(str(folder))
    assert sorted(p.name for p in folder.iterdir()) == ["raw_outputs", INDEX]
    assert len(raw.files) == 3
    assert all((folder / name).stat().st_size < 50_000 for name in raw.files.values())
    assert raw.merge.stuff_area_limit == cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT
    (counts,) = sweep(raw, [raw.merge])
    assert 100 * counts.results()["All"]["pq"] == pytest.approx(
        results["panoptic_seg"]["PQ"], abs=1e-12
    )


def test_an_evaluation_pastes_each_mask_once(toy_datasets, tmp_path, monkeypatch):
    pasted = []
    paste = mask_ops._do_paste_mask
    monkeypatch.setattr(
        mask_ops, "_do_paste_mask", lambda m, *a, **k: pasted.append(len(m)) or paste(m, *a, **k)
    )
    cfg = tiny_config(toy_datasets, tmp_path, overrides=["TEST.SAVE_RAW_OUTPUTS", True])
    Trainer.test(cfg, Trainer.build_model(cfg))
    raw = RawOutputs.open(str(tmp_path / "inference" / "tiny_val"))
    assert sum(pasted) == sum(len(raw.load(i)[0]) for i in raw.files) > 0


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, stuff_png=np.array([print], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz cannot be read: ValueError: .*allow_pickle"):
        load_raw_output(str(path))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"xyz"])
def test_damaged_file(tmp_path, damage):
    path = tmp_path / "a.npz"
    save_raw_output(str(path), *random_output(0, 2, 8, 8))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
        load_raw_output(str(path))


@pytest.mark.parametrize("png", ["{folder}/a.png", "../../a.png"])
def test_nothing_is_written_outside_the_folder(register, tmp_path, png):
    truth = PanopticGroundTruth(register(two_images()))
    truth.png_names[0] = png.format(folder=tmp_path)
    writer = RawOutputWriter(str(tmp_path / "x" / "out"), truth, HeuristicMerge())
    writer.reset()
    with pytest.raises(ValueError, match="a.npz' is not below raw_outputs"):
        writer.process([{"image_id": 0}], [perfect_output(truth, 1)])
    assert not list(tmp_path.rglob("*.npz"))


def test_nothing_is_read_outside_the_folder(register, tmp_path):
    evaluate_noisy(register, tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["images"][0]["file_name"] = "../a.npz"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="no index of raw outputs: .*'../a.npz' is not below"):
        RawOutputs.open(str(tmp_path))


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="b.npz not found"):
        load_raw_output(str(tmp_path / "b.npz"))
    with pytest.raises(FileNotFoundError, match="TEST.SAVE_RAW_OUTPUTS True"):
        RawOutputs.open(str(tmp_path))
    (tmp_path / INDEX).write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match="no index of raw outputs: KeyError"):
        RawOutputs.open(str(tmp_path))


def test_merge_that_is_not_registered(register, tmp_path):
    evaluate_noisy(register, tmp_path)
    index = tmp_path / INDEX
    index.write_text(index.read_text().replace("HeuristicMerge", "SomebodysMerge"))
    with pytest.raises(ValueError, match="merge 'SomebodysMerge' is not registered .* import"):
        RawOutputs.open(str(tmp_path))
