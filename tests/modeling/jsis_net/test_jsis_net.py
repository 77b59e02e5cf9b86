"""JSIS-Net: sizes and counts of the paper's model, losses and gradients, and its results."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from small_jsis import STUFF, jsis_config, scene, small_jsis
from torch import nn

from spatialflow import optimize
from spatialflow.config import load_config
from spatialflow.model_zoo import get_config, get_config_file
from spatialflow.modeling.backbone import build_resnet

TERMS = ["loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg"]
WEIGHTS = {
    "loss_rpn_cls": ("MODEL.RPN.LOSS_WEIGHT", 1.0),
    "loss_rpn_loc": ("MODEL.RPN.BBOX_REG_LOSS_WEIGHT", 1.0),
    "loss_box_reg": ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 0.15),
    "loss_mask": ("MODEL.JSIS_NET.MASK_LOSS_WEIGHT", 0.3),
    "loss_sem_seg": ("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 1.0),
}
"""Key and value of each weight of Table 2 that has a key."""
BOXES = ((10, 10, 60, 50), (70, 30, 110, 90))


@pytest.fixture(scope="module")
def published():
    """The COCO config's model with random weights."""
    counts = ["MODEL.ROI_HEADS.NUM_CLASSES", "80", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "54"]
    where = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    name = get_config_file("JSIS-Net/jsis_net_R_50.yaml")
    return build_model(load_config(name, [*counts, *where])).eval()


def losses_of(model, *images):
    torch.manual_seed(0)  # what is sampled
    with EventStorage():
        return model.train()(list(images))


def test_parameters_are_those_counted_by_hand(published):
    batch_norms = [m for m in published.modules() if isinstance(m, nn.BatchNorm2d)]
    left_out = {id(p) for m in batch_norms for p in m.parameters()}

    def millions(module):
        return sum(p.numel() for p in module.parameters() if id(p) not in left_out) / 1e6

    parts = {name: round(millions(part), 2) for name, part in published.named_children()}
    assert parts == {
        "backbone": 23.45,
        "reduction": 9.44,
        "proposal_generator": 2.44,
        "region_heads": 7.12,
        "semantic_head": 13.20,
    }
    assert millions(published) == pytest.approx(55.64, abs=0.005)


def test_the_trunk_has_stride_8_and_logits_have_the_size_of_the_input(published):
    with torch.no_grad():
        dense = published.dense(torch.zeros(1, 3, 400, 400))
    assert dense.features.shape == (1, 512, 50, 50)
    assert dense.stuff.shape == (1, 54, 100, 100)
    assert published.semantic_head.upsample(dense.stuff).shape == (1, 54, 400, 400)
    assert published.semantic_head.deconv.out_channels == 133


@pytest.mark.parametrize("depth", [18, 50])
def test_dilation_keeps_the_names_and_the_shapes_of_weights(depth):
    cfg = jsis_config("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.OUT_FEATURES", ["res5"])
    dilated = build_backbone(cfg)
    cfg.MODEL.RESNETS.OUTPUT_STRIDE = 32
    plain = build_backbone(cfg)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (dilated, plain)]
    assert shapes[0] == shapes[1]
    strides = [m.output_shape()["res5"].stride for m in (dilated, plain)]
    assert strides == [8, 32]
    image = torch.randn(1, 3, 64, 96)
    assert dilated(image)["res5"].shape[-2:] == (8, 12)
    assert plain(image)["res5"].shape[-2:] == (2, 3)


def test_dilated_features_are_those_of_the_plain_ones_in_between():
    """Without padding in sight every fourth cell is the cell of a ResNet at stride 32."""
    cfg = jsis_config("MODEL.RESNETS.OUT_FEATURES", ["res5"], "MODEL.RESNETS.NORM", "FrozenBN")
    cfg.MODEL.RESNETS.OUTPUT_STRIDE = 16
    dilated = build_backbone(cfg)
    cfg.MODEL.RESNETS.OUTPUT_STRIDE = 32
    plain = build_resnet(cfg, type(dilated.output_shape()["res5"])(channels=3))
    plain.load_state_dict(dilated.state_dict())
    # The first convolution of res5 is dilated here and is not there; take it out of the way.
    for model in (dilated, plain):
        center = model.res5[0].conv1.weight.data
        center *= torch.zeros(3, 3).index_put((torch.tensor(1), torch.tensor(1)), torch.tensor(1.0))
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        ours, theirs = dilated(image)["res5"], plain(image)["res5"]
    torch.testing.assert_close(ours[:, :, ::2, ::2], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [32, 64])
def test_region_layers_have_the_width_of_the_key(width):
    heads = small_jsis("MODEL.JSIS_NET.REGION_WIDTH", width).region_heads
    assert len(heads.layers) == 3
    assert heads.layers[-1].conv2.out_channels == width
    assert heads.box_predictor.cls_score.in_features == 4 * width


def test_more_than_one_feature_is_refused():
    with pytest.raises(ValueError, match="MODEL.RPN.IN_FEATURES is .*one feature"):
        build_model(jsis_config("MODEL.RPN.IN_FEATURES", ["res4", "res5"]))


@pytest.mark.parametrize("key", ["MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.NUM_CLASSES"])
def test_class_counts_must_be_known(key):
    with pytest.raises(ValueError, match=f"{key} is not set"):
        build_model(jsis_config(key, 0))


@pytest.mark.parametrize("term", WEIGHTS)
def test_a_weight_scales_its_loss_alone(term):
    key, value = WEIGHTS[term]
    assert get_config("JSIS-Net/jsis_net_R_50.yaml").merge_from_list([key, value]) is None
    plain = losses_of(small_jsis(), scene(*BOXES))
    assert list(plain) == TERMS
    scaled = losses_of(small_jsis(key, 3 * value), scene(*BOXES))
    # Detectron2's LOSS_WEIGHT is of both of the RPN's terms.
    both = {"loss_rpn_cls", "loss_rpn_loc"} if term == "loss_rpn_cls" else {term}
    for name in TERMS:
        factor = 3 if name in both else 1
        assert scaled[name].item() == pytest.approx(factor * plain[name].item(), rel=1e-4)


def test_weights_are_those_of_the_paper():
    cfg = get_config("JSIS-Net/jsis_net_R_50.yaml")
    flat = {key: node for key, node in _leaves(cfg)}
    assert {key: flat[key] for key, _ in WEIGHTS.values()} == dict(WEIGHTS.values())
    assert cfg.SOLVER.WEIGHT_DECAY == 5.5e-5


def _leaves(node, prefix=""):
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_trains_the_trunk_and_not_the_other_branch(term):
    model = small_jsis()
    losses_of(model, scene(*BOXES))[term].backward()
    assert model.backbone.res3[0].conv1.weight.grad.abs().sum() > 0
    reached = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    semantic = term == "loss_sem_seg"
    assert ("semantic_head" in reached) == semantic
    assert ({"proposal_generator", "region_heads"} & reached == set()) == semantic


CASES = {
    "no things": scene(),
    "a thing of one pixel": scene((50, 40, 51, 41)),
    "only a crowd": {**scene(), "sem_seg": torch.zeros(96, 128, dtype=torch.int64)},
    "no label": {**scene(), "sem_seg": torch.full((96, 128), 255)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("norm", ["GN", "BN"])
def test_images_with_little_in_them_train(case, norm):
    model = small_jsis("MODEL.JSIS_NET.NORM", norm)
    losses = losses_of(model, CASES[case], CASES[case])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    # Also what has nothing to learn takes part, so that processes can be averaged.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_crowds_have_no_semantic_label():
    model = small_jsis()
    loss = losses_of(model, CASES["only a crowd"])["loss_sem_seg"]
    assert loss == 0


def test_zero_detections_leave_stuff_alone():
    model = small_jsis("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)
    result = model([{"image": scene()["image"], "height": 48, "width": 60}])[0]
    assert len(result["instances"]) == 0
    assert result["instances"].pred_masks.shape == (0, 48, 60)
    panoptic, segments = result["panoptic_seg"]
    assert panoptic.shape == (48, 60) and panoptic.min() > 0
    assert not any(s["isthing"] for s in segments)


def assert_same(ours, theirs, atol=1e-4):
    assert len(ours["instances"]) == len(theirs["instances"]) > 0
    ours_found, theirs_found = ours["instances"], theirs["instances"]
    torch.testing.assert_close(ours_found.scores, theirs_found.scores, rtol=0, atol=atol)
    boxes = [x.pred_boxes.tensor for x in (ours_found, theirs_found)]
    torch.testing.assert_close(*boxes, rtol=0, atol=100 * atol)
    # Rounding of a box of less than a pixel may show in its mask.
    close = (ours_found.pred_mask_probs - theirs_found.pred_mask_probs).abs() < atol
    assert close.float().mean() > 0.99
    torch.testing.assert_close(ours["sem_seg"], theirs["sem_seg"], rtol=0, atol=10 * atol)
    same = ours["panoptic_seg"][0] == theirs["panoptic_seg"][0]
    assert same.float().mean() > 0.999


def test_a_result_does_not_depend_on_the_batch():
    """Neither on the other images nor on the padding that theirs would bring along."""
    model = small_jsis("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.2)
    sizes = [(96, 128), (96, 128), (72, 100), (150, 90)]
    inputs = [
        {"image": scene(size=size, seed=i)["image"], "height": 80, "width": 110}
        for i, size in enumerate(sizes)
    ]
    together = model(inputs)
    for alone, result in zip(inputs, together, strict=True):
        assert_same(result, model([alone])[0])
        assert result["sem_seg"].shape == (STUFF, 80, 110)


def test_only_the_map_is_the_map_of_all_results():
    model = small_jsis("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.2)
    inputs = [{"image": scene()["image"], "height": 80, "width": 110}]
    (panoptic, segments), (full, all_segments) = (
        x[0]["panoptic_seg"] for x in (model.panoptic_inference(inputs), model(inputs))
    )
    assert torch.equal(panoptic, full)
    for ours, theirs in zip(segments, all_segments, strict=True):
        assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_the_fast_path_gives_the_same(norm):
    model = small_jsis("MODEL.JSIS_NET.NORM", norm, "MODEL.RESNETS.NORM", norm)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    fast = optimize(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    inputs = [{"image": scene()["image"]}]
    assert_same(fast(inputs)[0], model(inputs)[0], atol=1e-3)


def test_half_precision_and_a_compiled_dense_step():
    model = small_jsis()
    found = optimize(model, dtype=torch.bfloat16)([{"image": scene()["image"]}])[0]
    assert found["sem_seg"].dtype == found["instances"].scores.dtype == torch.float32
    images = model.preprocess_image([{"image": scene()["image"]}]).tensor
    compiled = torch.compile(model.dense, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(tuple(compiled(images)), tuple(model.dense(images)))
