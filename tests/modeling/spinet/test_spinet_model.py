"""SPINet as a whole: its size, its losses and their gradients, its answers."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Instances, pairwise_iou
from fvcore.nn import FlopCountAnalysis
from torch import nn

from spatialflow.inference.optimized import optimize
from spatialflow.model_zoo import get_config
from spatialflow.modeling.spinet.criterion import image_targets
from spatialflow.modeling.spinet.locations import find_peaks

TWO = ((4, 4, 30, 40), (40, 10, 80, 60))
LOSSES = ("cls", "mask", "sem_seg", "sem_seg_dice", "triplet", "contour")


def of_paper(**keys):
    """The paper's model on Cityscapes with random weights, on the CPU."""
    cfg = get_config("SPINet/spinet_R_50_Cityscapes.yaml")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 8, 19
    for key, value in keys.items():
        cfg.MODEL.SPINET[key] = value
    return build_model(cfg).eval()


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


class Network(nn.Module):
    """What is computed of an image with a number of things."""

    def __init__(self, model, things):
        super().__init__()
        self.model, self.things = model, things

    def forward(self, images):
        dense = self.model.dense(images)
        filters = [x[0] for x in dense.filters]
        own = self.model.filter_sampling.sample(filters, torch.arange(self.things))
        masks = F.conv2d(dense.feature, own, padding=1)
        return dense.stuff, *dense.logits, masks


def multiply_adds(model, things):
    """Of an image of 1024x2048, of which a sixteenth is run: all of it but the FC is per pixel."""
    counter = FlopCountAnalysis(Network(model, things), torch.zeros(1, 3, 256, 512))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    generator = things * model.filter_sampling.generator.weight.numel()
    return 16 * (counter.total() - generator) + generator


def test_size_is_that_of_table_2_and_5():
    model = of_paper()
    auxiliary = parameters(model.triplets, model.contours)
    assert parameters(model) - auxiliary == pytest.approx(42.2e6, rel=0.01)
    assert parameters(model) == pytest.approx(42.3e6, rel=0.01)  # Table 3
    assert parameters(model.panoptic_feature) == pytest.approx((46.6 - 42.2) * 1e6, rel=0.01)
    with torch.no_grad():
        assert multiply_adds(model, things=20) == pytest.approx(0.81e12, rel=0.05)


def test_a_second_feature_costs_what_table_5_says():
    one, two = (of_paper(TWO_FEATURES=two) for two in (False, True))
    assert parameters(two) - parameters(one) == pytest.approx(4.4e6, rel=0.01)


def test_upsampling_first_costs_what_the_paper_says_of_a_second_feature():
    behind, before = (of_paper(UPSAMPLE_FIRST=first) for first in (False, True))
    assert parameters(behind) == parameters(before)
    with torch.no_grad():
        assert multiply_adds(before, 20) > multiply_adds(behind, 20)


def test_levels_have_strides_8_8_16_32_32(build):
    model = build()
    shapes = model.backbone.output_shape()
    assert [shapes[f"p{i}"].stride for i in range(2, 7)] == [8, 8, 16, 32, 32]
    levels = model.backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape[-2:]) for x in levels.values()] == [(8, 12)] * 2 + [(4, 6)] + [(2, 3)] * 2
    assert "p6" not in build(SPINET__FEATURE_LEVELS=["p2"], SPINET__FILTER_LEVELS=["p2"]).backbone(
        torch.zeros(1, 3, 64, 96)
    )


def test_p2_is_made_of_halved_c2_and_p3(build):
    backbone = build().backbone
    image = torch.randn(1, 3, 64, 96)
    trunk = backbone.bottom_up(image)
    merged = backbone.fpn_lateral5(trunk["res5"])
    for i in (4, 3):
        lateral = getattr(backbone, f"fpn_lateral{i}")(trunk[f"res{i}"])
        merged = lateral + F.interpolate(merged, scale_factor=2)
    halved = F.interpolate(trunk["res2"], scale_factor=0.5, mode="bilinear")
    p2 = backbone.fpn_output2(merged + backbone.fpn_lateral2(halved))
    torch.testing.assert_close(backbone(image)["p2"], p2, rtol=1e-4, atol=1e-5)


def losses_of(model, *inputs):
    torch.manual_seed(0)
    return model.train()([*inputs])


@pytest.mark.parametrize("key", ["UPSAMPLE_FIRST", "DEFORM_FEATURE", "TWO_FEATURES"])
def test_losses_are_finite_and_every_parameter_has_a_gradient(build, scene, key):
    model = build(**{f"SPINET__{key}": True})
    inputs = [scene(*TWO, *TWO), scene()]
    losses = losses_of(model, *inputs)
    assert set(losses) == {f"loss_{name}" for name in LOSSES}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "projection.bias" in name, name


@pytest.mark.parametrize(
    ("boxes", "crowd"),
    [((), None), ((), (0, 0, 96, 64)), (((5, 5, 6, 6),), None), (((95, 0, 96, 64),), None)],
    ids=["no things", "only crowd", "one pixel", "in void"],
)
def test_scenes_with_little_to_learn_from(build, scene, boxes, crowd):
    model = build()
    losses = losses_of(model, scene(*boxes, crowd=crowd))
    sum(losses.values()).backward()
    assert all(x.isfinite() for x in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert (losses["loss_mask"] > 0) == (len(boxes) > 0)
    if crowd:
        assert all(x == 0 for name, x in losses.items() if name != "loss_sem_seg_dice")


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_reaches_c2(build, scene, name):
    model = build(SPINET__TRIPLET_NEGATIVES="any")
    losses_of(model, scene(*TWO))[f"loss_{name}"].backward()
    gradient = model.backbone.bottom_up.res2[0].conv1.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_weights_scale_their_losses(build, cfg, scene):
    plain = losses_of(build(), scene(*TWO, *TWO))
    weights = {"CLS": 2.0, "THING": 3.0, "INTER": 5.0, "INTRA": 7.0}
    scaled = losses_of(
        build(SPINET__LOSS_WEIGHTS=weights, SEM_SEG_HEAD__LOSS_WEIGHT=4.0), scene(*TWO, *TWO)
    )
    factors = {"cls": 2, "mask": 3, "sem_seg": 4, "sem_seg_dice": 4, "triplet": 7, "contour": 5}
    for name, factor in factors.items():
        expected = factor * plain[f"loss_{name}"]
        torch.testing.assert_close(scaled[f"loss_{name}"], expected, rtol=1e-4, atol=1e-6)


def test_without_their_weights_the_auxiliary_tasks_do_not_exist(build, scene):
    model = build(
        SPINET__LOSS_WEIGHTS__INTER=0.0,
        SPINET__LOSS_WEIGHTS__INTRA=0.0,
        SPINET__STUFF_DICE=False,
    )
    assert model.triplets is None and model.contours is None
    assert set(losses_of(model, scene(*TWO))) == {"loss_cls", "loss_mask", "loss_sem_seg"}


def test_auxiliary_tasks_are_idle_at_inference(build, scene):
    model = build()
    for task in (model.triplets, model.contours):
        task.register_forward_hook(lambda *_: pytest.fail("an auxiliary task ran"))
    assert "panoptic_seg" in model([scene()])[0]


def test_void_crowd_and_padding_are_left_out(scene):
    example = scene(TWO[0], crowd=(40, 0, 60, 20))
    targets = image_targets(example, (96, 128), 255, torch.device("cpu"))
    assert targets.ignored[64:].all() and targets.ignored[:, 92:].all()
    assert targets.ignored[:20, 40:60].all() and not targets.ignored[20:64, :92].any()
    assert targets.masks.shape == (1, 96, 128) and targets.masks.sum() == 26 * 36


def test_losses_do_not_see_labels_of_void(build, scene):
    """What the labels are under a crowd makes no difference."""
    a, b = scene(*TWO, crowd=(0, 44, 30, 64)), scene(*TWO, crowd=(0, 44, 30, 64))
    b["sem_seg"][44:64, :30] = 3
    model = build()
    with torch.no_grad():
        first, second = losses_of(model, a), losses_of(model, b)
    assert first == second


def assert_same(a, b):
    """Equal results but for rounding, which moves a pixel at the border of a mask."""
    torch.testing.assert_close(a["sem_seg"], b["sem_seg"], rtol=1e-4, atol=1e-5)
    assert len(a["instances"]) == len(b["instances"]) > 0
    torch.testing.assert_close(a["instances"].scores, b["instances"].scores)
    for x, y in (
        (a["instances"].pred_masks, b["instances"].pred_masks),
        (a["panoptic_seg"][0], b["panoptic_seg"][0]),
    ):
        assert (x == y).float().mean() > 0.999


def test_an_answer_depends_neither_on_the_batch_nor_on_its_padding(build, scene):
    model = build()
    inputs = [scene(seed=1), scene(seed=2), scene(size=(70, 90), seed=3), scene(size=(60, 94))]
    for example, together in zip(inputs, model(inputs), strict=True):
        assert_same(together, model([example])[0])


def test_answers(build, scene):
    model = build()
    example = {**scene(size=(70, 90)), "height": 140, "width": 200}
    result, only_map = model([example])[0], model.panoptic_inference([example])[0]
    found = result["instances"]
    assert found.image_size == (140, 200) and found.pred_masks.shape[1:] == (140, 200)
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert (found.scores.diff() <= 0).all() and len(found) <= 20
    rows, columns = found.pred_masks[0].nonzero().unbind(1)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found.pred_boxes.tensor[0].tolist() == [float(x) for x in expected]
    assert result["sem_seg"].shape == (4, 140, 200)
    assert torch.equal(result["panoptic_seg"][0], only_map["panoptic_seg"][0])


def test_no_detections(build, scene):
    model = build(RETINANET__SCORE_THRESH_TEST=1.0)
    result = model([scene()])[0]
    assert len(result["instances"]) == 0 and result["instances"].pred_masks.shape == (0, 64, 96)
    assert not any(s["isthing"] for s in result["panoptic_seg"][1])


def test_peaks_are_the_largest_of_their_surroundings_and_class(build):
    model = build(RETINANET__TOPK_CANDIDATES_TEST=3)
    logits = [torch.full((3, 5, 6), -9.0), torch.full((3, 2, 2), -9.0)]
    logits[0][0, 1, 1], logits[0][0, 1, 2] = 2.0, 1.0
    logits[0][1, 1, 2], logits[1][2, 0, 1], logits[0][2, 4, 5] = 0.5, 3.0, 0.1
    peaks = find_peaks(logits, model.score_thresh, model.topk_candidates)
    assert peaks.locations.tolist() == [31, 7, 8] and peaks.classes.tolist() == [2, 0, 1]
    torch.testing.assert_close(peaks.scores, torch.tensor([3.0, 2.0, 0.5]).sigmoid())


def asked(found, boxes, classes):
    return Instances(found.image_size, pred_boxes=boxes, pred_classes=classes)


def test_masks_of_given_boxes_are_those_of_the_own_candidates(build, scene):
    model = build()
    images = model.preprocess_image([scene()])
    with torch.no_grad():
        outputs = model.first_pass(images, [(64, 96)])
        (own,) = outputs.candidates
        given = asked(own, own.pred_boxes, own.pred_classes)
        (masks,) = model.predict_masks(outputs.mask_features, [given], images.image_sizes)
    assert masks.shape == (len(own), 112, 112)
    iou = pairwise_iou(own.pred_boxes, own.pred_boxes)
    iou = iou.masked_fill(own.pred_classes[:, None] != own.pred_classes, 0)
    expected = own.dense_masks[iou.argmax(1)].in_boxes(own.pred_boxes, 112)
    torch.testing.assert_close(masks, expected)


def test_masks_of_boxes_that_were_not_found_come_from_their_centres(build, scene):
    model = build(RETINANET__SCORE_THRESH_TEST=1.0)
    images = model.preprocess_image([scene()])
    with torch.no_grad():
        dense = model.dense(images.tensor)
        given = Instances((64, 96), pred_classes=torch.tensor([1]))
        given.pred_boxes = type(scene()["instances"].gt_boxes)(torch.tensor([[8.0, 8, 40, 40]]))
        for level in dense.logits:
            level.fill_(-5)
        dense.logits[2][0, 1, 1, 1] = 4  # stride 16: the centre, (24, 24), is in cell (1, 1)
        (masks,) = model.predict_masks(dense, [given], [(64, 96)])
        location = torch.tensor([2 * 8 * 12 + 6 + 1])
        own = model._masks_at(dense, 0, location, (64, 96))
    torch.testing.assert_close(masks, own.in_boxes(given.pred_boxes, 112))


def test_fast_path(build, scene):
    model = build()
    assert_same(optimize(model)([scene()])[0], model([scene()])[0])
    half = optimize(model, dtype=torch.bfloat16)([scene()])[0]
    assert half["sem_seg"].dtype == half["instances"].scores.dtype == torch.float32
    compiled = torch.compile(model.dense, backend="eager", fullgraph=True, dynamic=False)
    images = model.preprocess_image([scene()]).tensor
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model.dense(images))
