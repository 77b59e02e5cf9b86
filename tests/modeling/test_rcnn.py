"""Detectron2's models in their adapters give what the models give; the merge has their settings."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from small_rcnn import KINDS, rcnn_config, small_rcnn

from spatialflow import optimize
from spatialflow.modeling import HeuristicMerge, as_panoptic_model

ROAD = 0


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8, generator=generator)


def assert_same_instances(ours, theirs, **tolerance):
    assert len(theirs) > 5
    torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, **tolerance)
    torch.testing.assert_close(ours.scores, theirs.scores, **tolerance)
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
    assert ours.has("pred_masks") == theirs.has("pred_masks")
    if theirs.has("pred_masks"):
        # The boxes were brought to the output size and back.
        same = ours.pred_masks == theirs.pred_masks
        assert same.float().mean() > 0.999


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_adapter_gives_the_results_of_the_model(image, kind):
    cfg = rcnn_config(**kind)
    model = small_rcnn(cfg)
    inputs = [{"image": image, "height": 48, "width": 64}]
    with torch.no_grad():
        expected = model(inputs)[0]
    found = as_panoptic_model(model, cfg)(inputs)[0]
    assert found.keys() == expected.keys()
    assert_same_instances(found["instances"], expected["instances"], rtol=0, atol=0)
    if "sem_seg" in expected:
        assert torch.equal(found["sem_seg"], expected["sem_seg"])


def panoptic_fpn(*opts):
    """A Panoptic FPN that gives each merge something to do, and its config."""
    cfg = rcnn_config("PanopticFPN")
    cfg.merge_from_list([str(o) for o in opts])
    return small_rcnn(cfg), cfg


def described(panoptic_seg):
    """A map and its segments without what only one of the merges says of them."""
    panoptic, segments = panoptic_seg
    return panoptic, [(s["id"], s["isthing"], s["category_id"], s.get("score")) for s in segments]


@pytest.mark.parametrize("thresh", [0.3, 0.5])
def test_merge_of_panoptic_fpn_is_detectron2s(image, thresh):
    """With the labels of COCO, in which 0 is 'other'."""
    model, cfg = panoptic_fpn(
        *("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", thresh),
        *("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 200),
    )
    inputs = [{"image": image}]
    (found,) = as_panoptic_model(model, cfg)(inputs)
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    expected = combine_semantic_and_instance_outputs(
        found["instances"],
        found["sem_seg"].argmax(dim=0),
        combine.OVERLAP_THRESH,
        combine.STUFF_AREA_LIMIT,
        combine.INSTANCES_CONFIDENCE_THRESH,
    )
    with torch.no_grad():
        whole = model(inputs)[0]["panoptic_seg"]
    panoptic, segments = described(found["panoptic_seg"])
    assert {isthing for _, isthing, _, _ in segments} == {True, False}
    for their_map, their_segments in map(described, (expected, whole)):
        assert torch.equal(panoptic, their_map)
        assert segments == [(i, t, c, pytest.approx(s)) for i, t, c, s in their_segments]


def test_merge_of_panoptic_fpn_leaves_out_the_labels_of_things(image):
    """On Cityscapes label 0 is road, and the labels of things are others."""
    things = [3, 4]
    model, cfg = panoptic_fpn(
        *("MODEL.SEM_SEG_HEAD.THING_LABELS", things),
        *("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 2.0),
        *("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 1),
    )
    (found,) = as_panoptic_model(model, cfg)([{"image": image}])
    best = found["sem_seg"].argmax(dim=0)
    panoptic, segments = found["panoptic_seg"]
    painted = {s["category_id"]: panoptic == s["id"] for s in segments}
    predicted = set(best.unique().tolist())
    assert {ROAD, *things} < predicted and painted.keys() == predicted - set(things)
    assert torch.equal(painted[ROAD], best == ROAD)


def test_settings_of_the_merge():
    combine = "MODEL.PANOPTIC_FPN.COMBINE"
    model, cfg = panoptic_fpn(
        *(f"{combine}.INSTANCES_CONFIDENCE_THRESH", 0.4, f"{combine}.OVERLAP_THRESH", 0.25),
        *(f"{combine}.STUFF_AREA_LIMIT", 77, "MODEL.SEM_SEG_HEAD.THING_LABELS", [1, 2]),
        *("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.3),
    )
    adapted = as_panoptic_model(model, cfg)
    assert adapted.merge == HeuristicMerge((1, 2), 0.4, 0.25, 77, box_fill_min_free=None)
    assert adapted.nms_thresh == 0.3
    cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = False
    assert as_panoptic_model(model, cfg).merge is None


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_optimized_model_gives_the_results_of_the_model(image, kind):
    cfg = rcnn_config(**kind)
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    model = as_panoptic_model(small_rcnn(cfg), cfg)
    inputs = [{"image": image, "height": 48, "width": 64}]
    fast = optimize(model)
    (found,), (expected,) = fast(inputs), model(inputs)
    assert found.keys() == expected.keys()
    assert_same_instances(found["instances"], expected["instances"], rtol=1e-3, atol=1e-3)
    if "sem_seg" in expected:
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-3, atol=1e-3)
        same = found["panoptic_seg"][0] == expected["panoptic_seg"][0]
        assert same.float().mean() > 0.999
    folded = [m for m in model.modules() if "FrozenBatchNorm2d" in type(m).__name__]
    assert folded and not any("FrozenBatchNorm2d" in type(m).__name__ for m in fast.modules())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_dense_part_compiles_without_a_graph_break(image, kind):
    cfg = rcnn_config(**kind)
    model = as_panoptic_model(small_rcnn(cfg), cfg)
    images = model.preprocess_image([{"image": image}]).tensor
    compiled = torch.compile(model.dense, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        found, expected = compiled(images), model.dense(images)
    torch.testing.assert_close(found.pyramid, expected.pyramid)
    torch.testing.assert_close(found.stuff, expected.stuff)


def test_adapter_is_in_the_mode_of_its_model():
    cfg = rcnn_config()
    model = small_rcnn(cfg)
    assert not as_panoptic_model(model, cfg).training
    assert as_panoptic_model(model.train(), cfg).training and model.training


def test_training_an_adapter_is_refused(image):
    cfg = rcnn_config()
    with pytest.raises(RuntimeError, match="RCNNModel is for inference only"):
        as_panoptic_model(small_rcnn(cfg), cfg).train()([{"image": image}])


@pytest.fixture
def small_backbone():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    return cfg


def test_other_models_are_refused(small_backbone):
    cfg = small_backbone
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    with pytest.raises(ValueError, match="RetinaNet is not a panoptic model .* exist for General"):
        as_panoptic_model(build_model(cfg), cfg)


def test_heads_that_do_not_part_boxes_and_masks_are_refused(small_backbone):
    cfg = small_backbone
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    with pytest.raises(ValueError, match="GeneralizedRCNN with Res5ROIHeads cannot be evaluated"):
        as_panoptic_model(build_model(cfg), cfg)
