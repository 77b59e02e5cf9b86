"""Detectron2's models through the trainer: what is measured, what is written, what is trained."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from recorded_run import run
from tiny_runs import CONFIG, FPN_CONFIG, tiny_config

from spatialflow.data.targets import read_panoptic_png
from spatialflow.engine import Trainer
from spatialflow.inference import with_views
from spatialflow.modeling.class_layers import class_layers_of
from spatialflow.modeling.panoptic import HeuristicMerge
from spatialflow.saved.raw_outputs import RawOutputs
from spatialflow.tools.sweep import rows_of, sweep

COMBINE = "MODEL.PANOPTIC_FPN.COMBINE"
SAVE = ["TEST.SAVE_PREDICTIONS", True, "TEST.SAVE_RAW_OUTPUTS", True]
VOID = [f"{COMBINE}.INSTANCES_CONFIDENCE_THRESH", 0.2, f"{COMBINE}.STUFF_AREA_LIMIT", 30000]
VOID += ["MODEL.SPATIALFLOW.BOX_FILL.MIN_FREE", 0.01]
"""Things, much between them that is free, and a box fill that would fill it."""
MASK_RCNN = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]
ONLY = ["DATASETS.TEST", (), "SOLVER.STEPS", ()]


@pytest.fixture
def fpn_config(toy_datasets, tmp_path):
    """Function from overrides to the config of a small Panoptic FPN."""

    def make(*overrides, folder=tmp_path, max_iter=2):
        return tiny_config(toy_datasets, folder, max_iter, overrides, FPN_CONFIG)

    return make


def sure_of_something(cfg):
    """A Panoptic FPN whose boxes have scores above the threshold of the merge."""
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    torch.nn.init.normal_(model.sem_seg_head.predictor.weight, std=0.3)
    return model.eval()


def test_raw_outputs_of_panoptic_fpn_carry_its_own_merge(fpn_config, tmp_path):
    cfg = fpn_config(*SAVE, *VOID)
    results = Trainer.test(cfg, sure_of_something(cfg))
    folder = tmp_path / "inference" / "tiny_val"
    raw = RawOutputs.open(str(folder))
    assert raw.merge == HeuristicMerge((0,), 0.2, 0.5, 30000, box_fill_min_free=None)
    filled, changed = replace(raw.merge, box_fill_min_free=0.01), 0
    for image_id in raw.files:
        evaluated = read_panoptic_png(str(folder / "panoptic_predictions" / f"{image_id:05}.png"))
        again, with_fill = (
            raw.merged(*raw.load(image_id), merge)[0] for merge in (raw.merge, filled)
        )
        assert (again == evaluated).all()
        changed += (with_fill != evaluated).sum()
    assert changed
    (row,) = rows_of([raw.merge], sweep(raw, [raw.merge]))
    for name in ("PQ", "PQ_th", "PQ_st"):
        assert row[name] == pytest.approx(results["panoptic_seg"][name], abs=1e-12)


def test_views_of_panoptic_fpn_have_its_merge(fpn_config):
    """There is no box fill when views are put together, either."""
    one = ["TEST.AUG.ENABLED", True, "TEST.AUG.FLIP", False, "TEST.AUG.SCALES", [[160, 128]]]
    one += ["MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5]
    plain, seen = fpn_config(*VOID), fpn_config(*VOID, *one)
    model = sure_of_something(plain)
    alone, views = with_views(plain, model), with_views(seen, model)
    for (image,) in Trainer.build_test_loader(seen, "tiny_val"):
        expected, found = (m([image])[0]["panoptic_seg"] for m in (alone, views))
        assert len(expected[1]) > 3 and (expected[0] == 0).any()
        assert (found[0] == expected[0]).float().mean() > 0.999
    assert views.nms_thresh == 0.5


@pytest.mark.parametrize("config", [CONFIG, FPN_CONFIG], ids=["SpatialFlow", "Panoptic FPN"])
def test_without_merge_the_rest_is_measured(toy_datasets, tmp_path, caplog, config):
    overrides = [f"{COMBINE}.ENABLED", False, *SAVE]
    cfg = tiny_config(toy_datasets, tmp_path, 2, overrides, config)
    with caplog.at_level(logging.WARNING):
        results = Trainer.test(cfg, Trainer.build_model(cfg))
    assert list(results) == ["bbox", "segm", "sem_seg"]
    (warning,) = [r.getMessage() for r in caplog.records if "tiny_val" in r.getMessage()]
    assert "no raw outputs are written" in warning and "COMBINE.ENABLED is False" in warning
    written = {p.name for p in (tmp_path / "inference" / "tiny_val").iterdir()}
    assert not {n for n in written if n.startswith(("panoptic", "raw"))}


@pytest.mark.parametrize("config", [CONFIG, FPN_CONFIG], ids=["SpatialFlow", "Panoptic FPN"])
def test_training_without_merge_evaluates_at_its_end(toy_datasets, tmp_path, config):
    overrides = [f"{COMBINE}.ENABLED", False, "SOLVER.STEPS", ()]
    run(tiny_config(toy_datasets, tmp_path, 1, overrides, config))
    assert (tmp_path / "results.json").exists() and not (tmp_path / "model_best.pth").exists()


def test_mask_rcnn_is_measured_by_its_boxes_and_masks(fpn_config):
    cfg = fpn_config(*MASK_RCNN)
    assert list(Trainer.test(cfg, Trainer.build_model(cfg))) == ["bbox", "segm"]


@pytest.mark.parametrize("meta_arch", [[], MASK_RCNN], ids=["Panoptic FPN", "Mask R-CNN"])
def test_class_layers_alone_are_trained(fpn_config, meta_arch):
    cfg = fpn_config(*meta_arch, *ONLY, "MODEL.CLASS_LAYERS.TRAIN_ONLY", True)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name for name in before if name.startswith(class_layers_of(cfg))}


@pytest.mark.parametrize("meta_arch", [[], MASK_RCNN], ids=["Panoptic FPN", "Mask R-CNN"])
def test_weights_of_other_classes_are_loaded_without_the_class_layers(
    fpn_config, tmp_path, meta_arch
):
    cfg = fpn_config(*meta_arch, *ONLY)
    few = cfg.clone()
    few.defrost()
    few.MODEL.ROI_HEADS.NUM_CLASSES, few.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2, 3
    weights = Trainer.build_model(few).state_dict()
    path = str(tmp_path / "few.pth")
    torch.save({"model": weights}, path)
    refused = Trainer(fpn_config(*meta_arch, *ONLY, "MODEL.WEIGHTS", path))
    with pytest.raises(ValueError, match=r"MODEL\.CLASS_LAYERS\.REINIT"):
        refused.resume_or_load(resume=False)
    reinit = ["MODEL.WEIGHTS", path, "MODEL.CLASS_LAYERS.REINIT", True]
    trainer = Trainer(fpn_config(*meta_arch, *ONLY, *reinit))
    fresh = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    for name, value in trainer.model.state_dict().items():
        source = fresh if name.startswith(class_layers_of(cfg)) else weights
        assert torch.equal(value, source[name]), name
