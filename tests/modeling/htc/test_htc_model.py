"""HTC as a whole: counts of parameters, training on odd images, the steps of a panoptic model."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from small_htc import SIZE, htc_config, losses_of, small_htc, training_image
from small_rcnn import STUFF

from spatialflow import optimize
from spatialflow.inference import with_views
from spatialflow.model_zoo import get_config
from spatialflow.modeling import HeuristicMerge, HybridTaskCascade

COCO_STUFF = ("MODEL.HTC.COCO_STUFF_LABELS", 183)


def on_meta(name):
    cfg = get_config(name)
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 80, 54
    with torch.device("meta"):
        return build_model(cfg)


def count(parameters) -> float:
    """In millions, as published."""
    return sum(p.numel() for p in parameters) / 1e6


@pytest.mark.parametrize(
    ("name", "published"), [("htc_R_101_20e", 99.03), ("htc_X_101_64x4d_20e", 137.75)]
)
def test_trainable_parameters_are_the_published_ones(name, published):
    """The authors count the batch norms that they do not update, but for the frozen stages'."""
    model = on_meta(f"HTC/{name}.yaml")
    frozen = ("backbone.bottom_up.stem", "backbone.bottom_up.res2")
    norms = [
        x
        for norm_name, norm in model.named_modules()
        if isinstance(norm, FrozenBatchNorm2d) and not norm_name.startswith(frozen)
        for x in (norm.weight, norm.bias)
    ]
    trainable = count(p for p in model.parameters() if p.requires_grad) + count(norms)
    assert trainable == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HTC/htc_R_101_20e", 99.145),
        ("HTC/htc_panoptic_R_50_20e", 80.172),
        ("panoptic_fpn/panoptic_fpn_R_50", 45.974),
    ],
)
def test_parameters(name, expected):
    assert count(on_meta(f"{name}.yaml").parameters()) == pytest.approx(expected, abs=0.0005)


def crowd_alone():
    crowd = torch.zeros(SIZE, dtype=torch.bool)
    crowd[10:40, 10:40] = True
    labels = torch.full(SIZE, 1)
    labels[crowd] = 255
    return training_image(labels=labels, crowd=crowd)


ODD = {
    "no things": [training_image()],
    "only a crowd": [crowd_alone()],
    "one pixel": [training_image([(30, 30, 31, 31)])],
    "one pixel in the corner": [training_image([(0, 0, 1, 1)])],
    "the whole image": [training_image([(0, 0, SIZE[1], SIZE[0])])],
    "no labels": [training_image([(5, 5, 40, 40)], labels=torch.full(SIZE, 255))],
    "some with, some without": [training_image([(5, 5, 40, 40)]), training_image()],
    "two sizes": [training_image([(5, 5, 40, 40)]), training_image(size=(40, 50))],
}


@pytest.mark.parametrize("overrides", [(), COCO_STUFF], ids=["stuff", "COCO-stuff"])
@pytest.mark.parametrize("batch", ODD.values(), ids=ODD)
def test_odd_images_give_finite_losses_and_every_weight_a_gradient(batch, overrides):
    model = small_htc(*overrides)
    losses = losses_of(model, batch)
    stages = [f"loss_{x}_stage{t}" for t in range(3) for x in ("cls", "box_reg", "mask")]
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_sem_seg", *stages}
    assert all(torch.isfinite(x) for x in losses.values()), losses
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_missing_targets_are_named():
    image = {**training_image([(5, 5, 40, 40)]), "file_name": "a.jpg"}
    with pytest.raises(ValueError, match="Training needs 'sem_seg', which image a.jpg does not"):
        losses_of(small_htc(), [{k: v for k, v in image.items() if k != "sem_seg"}])


def test_zero_detections():
    (result,) = small_htc("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.5)([training_image()])
    assert len(result["instances"]) == 0
    assert result["instances"].pred_masks.shape == (0, *SIZE)
    panoptic, segments = result["panoptic_seg"]
    assert panoptic.shape == SIZE and not any(s["isthing"] for s in segments)


def assert_same(found, expected):
    a, b = found["instances"], expected["instances"]
    torch.testing.assert_close(a.scores, b.scores, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-2, atol=2e-3)
    same = found["panoptic_seg"][0] == expected["panoptic_seg"][0]
    assert same.float().mean() > 0.999


def test_results_do_not_depend_on_the_batch():
    """Two of one size run together; the third would pad them."""
    model = small_htc()
    sizes = ((64, 96), (60, 90), (100, 128))
    images = [training_image(size=size) for size in sizes]
    together = model(images)
    assert all(len(x["instances"]) for x in together)
    for image, found in zip(images, together, strict=True):
        assert_same(found, model([image])[0])


def test_panoptic_maps_alone_are_those_of_all_results():
    model, image = small_htc(), training_image()
    (found,), (expected,) = model.panoptic_inference([image]), model([image])
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])


def test_merge_is_panoptic_fpns():
    model = small_htc("MODEL.SEM_SEG_HEAD.THING_LABELS", [1, 2])
    assert model.merge == HeuristicMerge((1, 2), 0.5, 0.5, 64, box_fill_min_free=None)
    assert small_htc("MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False).merge is None


def test_with_coco_stuff_labels_it_has_things_alone():
    model = small_htc(*COCO_STUFF, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 0)
    assert not model.predicts_stuff and model.merge is None
    assert model.semantic_head.predictor.out_channels == 183
    assert set(model([training_image()])[0]) == {"instances"}


def test_unset_class_counts_are_refused():
    for key in HybridTaskCascade.class_counts:
        with pytest.raises(ValueError, match=f"{key} is not set"):
            small_htc(key, 0)


def test_class_layers_are_all_that_depends_on_the_classes():
    shapes = [
        {k: v.shape for k, v in small_htc(*overrides).state_dict().items()}
        for overrides in ((), ("MODEL.ROI_HEADS.NUM_CLASSES", 7, *COCO_STUFF))
    ]
    differ = {k for k, shape in shapes[0].items() if shapes[1][k] != shape}
    assert differ and all(k.startswith(HybridTaskCascade.class_layers) for k in differ)
    trainable = ("MODEL.CLASS_LAYERS.TRAIN_ONLY", True)
    for name, p in small_htc(*trainable).named_parameters():
        assert p.requires_grad == name.startswith(HybridTaskCascade.class_layers), name


def test_mirrored_views_give_the_mirrored_answer():
    cfg = htc_config("TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", [[96, 64]])
    model, pixels = with_views(cfg, small_htc()), training_image()["image"]
    plain, mirrored = (model([{"image": x}])[0] for x in (pixels, pixels.flip(-1)))
    torch.testing.assert_close(mirrored["sem_seg"].flip(-1), plain["sem_seg"], rtol=0, atol=1e-4)
    assert len(plain["instances"]) == len(mirrored["instances"]) > 0
    same = mirrored["panoptic_seg"][0].flip(-1) == plain["panoptic_seg"][0]
    assert same.float().mean() > 0.99


@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
def test_optimized_model_gives_the_results_of_the_model(norm):
    model = small_htc("MODEL.RESNETS.NORM", norm)
    inputs = [{**training_image(), "height": 50, "width": 70}]
    fast = optimize(model)
    assert_same(fast(inputs)[0], model(inputs)[0])
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in fast.modules())


def test_optimized_model_in_half_precision():
    (found,) = optimize(small_htc(), dtype=torch.bfloat16)([training_image()])
    assert found["sem_seg"].dtype == found["instances"].scores.dtype == torch.float32
    assert found["sem_seg"].shape == (STUFF, *SIZE)


def test_dense_part_compiles_without_a_graph_break():
    model = small_htc()
    images = model.preprocess_image([training_image()]).tensor
    compiled = torch.compile(model.dense, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model.dense(images))


def test_deformable_stages_need_no_compiled_operators():
    model = small_htc(
        *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 32),
        *("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
    )
    assert model.backbone.bottom_up.res5[0].conv2_offset.out_channels == 18
    losses = losses_of(model, [training_image([(5, 5, 40, 40)])])
    sum(losses.values()).backward()
    assert model.backbone.bottom_up.res3[0].conv2_offset.weight.grad.any()
    assert model.eval()([training_image()])[0]["panoptic_seg"][0].shape == SIZE
