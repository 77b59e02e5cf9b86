"""The answer of many views: exact with one, the means and the NMS of them all with several."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import tiny_model
from detectron2.data import transforms as T
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import Recorded
from torch import nn

from spatialflow.inference.ensemble import EnsembleWithTTA, WeightedMean
from spatialflow.inference.member import ClassNumbers, Member
from spatialflow.inference.views import View
from spatialflow.modeling import HeuristicMerge

HEIGHT, WIDTH = 64, 96


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = tiny_model()
    nn.init.normal_(model.detector.cls_score.weight, std=0.5)
    nn.init.zeros_(model.detector.cls_score.bias)
    nn.init.normal_(model.thing_head.mask_head.predictor.weight, std=0.5)
    model.merge = replace(model.merge, stuff_area_limit=16)
    return model.eval()


@pytest.fixture(scope="module")
def image():
    return torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=seeded(3))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def view(shorter=HEIGHT, flip=False, weight=1.0):
    return View(T.ResizeShortestEdge(shorter, 10 * shorter), flip, weight)


def ensemble(*members, **kwargs):
    choices = {
        "input_format": "BGR",
        "nms_thresh": 0.4,
        "max_detections": 100,
        "merge": next((m.model.merge for m in members if m.model.merge is not None), None),
        "device": "cpu",
    }
    return EnsembleWithTTA(members, **{**choices, **kwargs}).eval()


def answer(model, image, **sizes):
    return model([{"image": image, **sizes}])[0]


def assert_same(one, other, atol=0.0):
    torch.testing.assert_close(one["sem_seg"], other["sem_seg"], rtol=0, atol=atol)
    a, b = one["instances"], other["instances"]
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=0, atol=atol)
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=atol)
    assert torch.equal(a.pred_classes, b.pred_classes)
    assert torch.equal(a.pred_masks, b.pred_masks)
    assert torch.equal(one["panoptic_seg"][0], other["panoptic_seg"][0])


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (50, 71)])
def test_one_view_is_plain_inference(model, image, size, weight):
    sizes = dict(zip(("height", "width"), size, strict=True))
    one = ensemble(Member(model, [view(48, weight=weight)], "BGR"))
    resized = T.ResizeShortestEdge(48, 480)
    pixels = T.AugInput(np.ascontiguousarray(image.numpy().transpose(1, 2, 0)))
    resized(pixels)
    small = torch.from_numpy(pixels.image.transpose(2, 0, 1).copy())
    expected = answer(model, small, **sizes)
    assert len(expected["instances"]) > 10 and len(expected["panoptic_seg"][1]) > 3
    assert_same(answer(one, image, **sizes), expected)


def test_masks_are_a_bool_tensor(model, image):
    both = ensemble(Member(model, [view(), view(flip=True)], "BGR"))
    instances = answer(both, image)["instances"]
    masks = instances.pred_masks
    assert type(masks) is torch.Tensor and masks.dtype == torch.bool
    assert masks.shape == (len(instances), HEIGHT, WIDTH) and masks.any()


def test_panoptic_maps_alone(model, image, monkeypatch):
    both = ensemble(Member(model, [view(), view(flip=True)], "BGR"))
    inputs = [{"image": image}, {"image": image, "height": 50, "width": 71}]
    expected = both(inputs)
    asked = []
    predict_masks = model.predict_masks
    monkeypatch.setattr(
        model, "predict_masks", lambda f, i, s: asked.extend(map(len, i)) or predict_masks(f, i, s)
    )
    found = both.panoptic_inference(inputs)
    threshold = model.merge.score_thresh
    confident = [int((x["instances"].scores >= threshold).sum()) for x in expected]
    assert 0 < confident[0] < len(expected[0]["instances"])
    assert asked == [n for n in confident for _ in range(2)]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == {"panoptic_seg"}
        assert torch.equal(one["panoptic_seg"][0], other["panoptic_seg"][0])
        assert one["panoptic_seg"][1] == other["panoptic_seg"][1]


def test_members_without_panoptic_maps_say_so(image):
    things = ensemble(Member(tiny_model(stuff=False).eval(), [view()], "BGR"))
    assert things.merge is None
    with pytest.raises(RuntimeError, match="no panoptic output"):
        things.panoptic_inference([{"image": image}])


def test_plain_and_flip_of_a_flipped_image_are_the_flipped_answer(model, image):
    both = ensemble(Member(model, [view(), view(flip=True)], "BGR"))
    straight, mirrored = answer(both, image), answer(both, image.flip(-1))
    boxes = straight["instances"].pred_boxes.tensor
    flipped = torch.stack([WIDTH - boxes[:, 2], boxes[:, 1], WIDTH - boxes[:, 0], boxes[:, 3]], 1)
    torch.testing.assert_close(mirrored["instances"].pred_boxes.tensor, flipped, rtol=0, atol=1e-3)
    torch.testing.assert_close(mirrored["sem_seg"].flip(-1), straight["sem_seg"])
    same = mirrored["panoptic_seg"][0].flip(-1) == straight["panoptic_seg"][0]
    assert same.float().mean() > 0.999
    # It is not so without the second view.
    plain = [answer(model, x)["sem_seg"] for x in (image, image.flip(-1))]
    assert not torch.allclose(plain[0], plain[1].flip(-1), atol=1e-3)


def test_views_and_members_are_weighted(model, image):
    views = [view(weight=3.0), view(48)]
    first, second = (answer(ensemble(Member(model, [v], "BGR")), image) for v in views)
    both = ensemble(Member(model, views, "BGR"))
    mean = (3 * first["sem_seg"] + second["sem_seg"]) / 4
    torch.testing.assert_close(answer(both, image)["sem_seg"], mean)
    apart = ensemble(
        *(Member(model, [v], "BGR", weight) for v, weight in zip(views, (2, 6), strict=True))
    )
    mean = (6 * first["sem_seg"] + 6 * second["sem_seg"]) / 12
    torch.testing.assert_close(answer(apart, image)["sem_seg"], mean)


def test_channels_reach_a_member_in_its_order(model, image):
    rgb = ensemble(Member(model, [view()], "RGB"))
    assert_same(answer(rgb, image), answer(model, image.flip(0)))


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_views_of_one_size_run_together_unless_they_are_large(model, image, at_a_time, monkeypatch):
    together = ensemble(Member(model, [view(), view(48), view(flip=True)], "BGR"))
    expected, sizes = answer(together, image), []
    limit = "spatialflow.modeling.batching.PIXELS_AT_A_TIME_ON_CPU"
    monkeypatch.setattr(limit, at_a_time * HEIGHT * WIDTH)
    hook = model.backbone.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    try:
        found = answer(together, image)
    finally:
        hook.remove()
    assert sizes == ([2, 1] if at_a_time == 2 else [1, 1, 1])
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"])
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])


def test_members_in_turn_give_the_same(model, image):
    members = [Member(model, [view(), view(48)], "BGR"), Member(model, [view(80)], "BGR")]
    together = answer(ensemble(*members), image)
    assert_same(answer(ensemble(*members, one_at_a_time=True), image), together)


def reference_nms(boxes, scores, classes, threshold, most):
    """Class by class and one by one, in double."""
    kept = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        for j in kept:
            if classes[i] == classes[j] and iou(boxes[i], boxes[j]) > threshold:
                break
        else:
            kept.append(i)
    return kept[:most]


def iou(a, b):
    a, b = a.double(), b.double()
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return sides.prod() / (sum(areas) - sides.prod())


@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 12), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_fusion_is_that_of_an_independent_reference(seed, counts):
    generator = seeded(seed)

    def random_member(count):
        corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
        boxes = (corners * torch.tensor([WIDTH - 8, HEIGHT - 8])).flatten(1)
        boxes[:, 2:] += 4
        scores = torch.rand(count, generator=generator)
        classes = torch.randint(0, 2, (count,), generator=generator)
        stuff = torch.randn(4, HEIGHT, WIDTH, generator=generator)
        return Recorded((boxes, scores, classes), torch.rand(1, 28, 28, generator=generator), stuff)

    recorded = [random_member(count) for count in counts]
    weights = [1.0 + i for i in range(len(counts))]
    members = [
        Member(r, [view()], "BGR", weight) for r, weight in zip(recorded, weights, strict=True)
    ]
    found = answer(
        ensemble(*members, max_detections=9), torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    )
    boxes, scores, classes = (
        torch.cat(x) for x in zip(*(r.candidates for r in recorded), strict=True)
    )
    kept = reference_nms(boxes, scores, classes, 0.4, 9)
    instances = found["instances"]
    assert torch.equal(instances.pred_boxes.tensor, boxes[kept])
    assert torch.equal(instances.scores, scores[kept])
    total = sum(weights)
    soft = (
        sum(w * r.masks_of(boxes[kept], WIDTH) for r, w in zip(recorded, weights, strict=True))
        / total
    )
    if kept:
        expected = paste_masks_in_image(soft, Boxes(boxes[kept]), (HEIGHT, WIDTH), 0.5)
        same = instances.pred_masks == expected
        assert same.float().mean() > 0.9999
    stuff = sum(w * r.stuff for r, w in zip(recorded, weights, strict=True)) / total
    torch.testing.assert_close(found["sem_seg"], stuff)


def test_members_keep_their_own_class_numbers():
    boxes = torch.tensor([[0.0, 0, 20, 20], [40, 0, 60, 20]])
    scores, classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 2])
    stuff = torch.arange(3.0)[:, None, None].expand(3, HEIGHT, WIDTH)
    recorded = Recorded((boxes, scores, classes), torch.ones(1, 28, 28), stuff)
    numbers = ClassNumbers(things=[2, 0, 1], stuff=[0, 2, 1])
    found = answer(
        ensemble(Member(recorded, [view()], "BGR", numbers=numbers)),
        torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8),
    )
    assert found["instances"].pred_classes.tolist() == [1, 0]  # its 0 is our 1, its 2 our 0
    assert recorded.asked[0].tolist() == [0, 2]
    assert found["sem_seg"][:, 0, 0].tolist() == [0, 2, 1]


def test_what_no_member_has_is_left_out(image):
    plain = ensemble(Member(tiny_model(things=False).eval(), [view()], "BGR"))
    found = answer(plain, image)
    assert set(found) == {"instances", "sem_seg"}
    assert not found["instances"].has("pred_masks")
    found = answer(ensemble(Member(tiny_model(stuff=False).eval(), [view()], "BGR")), image)
    assert set(found) == {"instances"} and found["instances"].has("pred_masks")


def test_things_of_one_member_and_stuff_of_another(image):
    """Such as two networks of which each does one thing."""
    boxes = (torch.tensor([[10.0, 10, 60, 40]]), torch.tensor([0.9]), torch.tensor([1]))
    things = Recorded(boxes, 9 * torch.ones(1, 28, 28))
    stuff = Recorded(stuff=torch.eye(3)[1][:, None, None].expand(3, HEIGHT, WIDTH))
    members = [Member(x, [view(), view(flip=True)], "BGR") for x in (things, stuff)]
    for order in (members, members[::-1]):
        both = ensemble(*order, merge=HeuristicMerge(stuff_area_limit=1))
        found = answer(both, image)
        panoptic, segments = found["panoptic_seg"]
        assert [(s["isthing"], s["category_id"]) for s in segments] == [(True, 1), (False, 1)]
        assert panoptic[25, 35] == 1 and panoptic[0, 0] == 2
    assert things.asked and not stuff.asked


def test_masks_of_another_size_are_resized(image):
    ones = torch.ones(1, 28, 28)
    boxes = (torch.tensor([[48.0, 0, 96, 40]]), torch.tensor([0.9]), torch.tensor([0]))
    nothing = tuple(x[:0] for x in boxes)
    stuff = torch.zeros(2, HEIGHT, WIDTH)
    small = Recorded(boxes, 3 * ones[:, ::2, ::2], stuff)
    for first in (Recorded(nothing, 0.2 * ones, stuff), Recorded(boxes, 0.2 * ones, stuff)):
        members = [Member(x, [view()], "BGR") for x in (first, small)]
        masks = answer(ensemble(*members), image)["instances"].pred_masks
        # At the border the mask fades out, and half of it is no more than the threshold.
        assert masks[0, 2:38, 50:94].all()
    empty = [Recorded(nothing, ones[:, :n, :n], stuff) for n in (28, 14)]
    found = answer(ensemble(*(Member(x, [view()], "BGR") for x in empty)), image)
    assert len(found["instances"]) == 0


def test_mean_of_nothing():
    mean = WeightedMean()
    assert mean.value is None
    for value, weight in ((1.0, 1.0), (4.0, 2.0)):
        mean.add(torch.tensor([value]), weight)
    assert mean.value.item() == 3
