"""The thing head: which regions it learns from, where it pools, its loss and its masks."""

import math

import pytest
import torch
from builders import CHANNELS, THINGS, ground_truth, tiny_thing_head
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances

from spatialflow.config import config_dir, load_config
from spatialflow.modeling.mask_head import ThingHead, mask_loss

SIZE = (64, 96)


def features(fill=None, size=SIZE, images=1):
    """Thing features of P3 to P5, noise or a constant for each level."""
    made = []
    for i, stride in enumerate((8, 16, 32)):
        shape = (images, CHANNELS, size[0] // stride, size[1] // stride)
        made.append(torch.randn(shape) if fill is None else torch.full(shape, float(fill[i])))
    return made


def detections(boxes, classes=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.zeros(len(boxes)) if classes is None else torch.tensor(classes)
    return Instances(SIZE, pred_boxes=Boxes(boxes), pred_classes=classes.long())


def test_regions_are_the_ground_truth_and_the_detections_that_meet_it():
    gt = ground_truth(SIZE, [(0, 0, 20, 20), (40, 20, 60, 60)], [2, 1])
    found = detections([(40, 20, 60, 50), (0, 0, 5, 5), (1, 0, 20, 20), (70, 0, 90, 20)], [0] * 4)
    (regions,) = tiny_thing_head().sample([found], [gt])
    assert regions.proposal_boxes.tensor.tolist() == [
        [0, 0, 20, 20],
        [40, 20, 60, 60],
        [40, 20, 60, 50],
        [1, 0, 20, 20],
    ]
    # The class is the ground truth's, not the prediction's, and so is the mask.
    assert regions.gt_classes.tolist() == [2, 1, 1, 2]
    assert torch.equal(regions.gt_masks.tensor, gt.gt_masks.tensor[[0, 1, 1, 0]])


def test_detection_at_the_threshold_is_positive():
    gt = ground_truth(SIZE, [(0, 0, 20, 20)])
    (regions,) = tiny_thing_head().sample([detections([(0, 0, 20, 10), (0, 0, 20, 9)])], [gt])
    assert regions.proposal_boxes.tensor[1:].tolist() == [[0, 0, 20, 10]]


def test_detection_learns_from_the_ground_truth_it_meets_best():
    gt = ground_truth(SIZE, [(0, 0, 20, 20), (0, 0, 20, 16)], [0, 1])
    (regions,) = tiny_thing_head().sample([detections([(0, 0, 20, 17)])], [gt])
    assert regions.gt_classes.tolist() == [0, 1, 1]


@pytest.mark.parametrize("boxes", [[], [(0, 0, 20, 20)]])
def test_image_without_things_gives_no_regions(boxes):
    (regions,) = tiny_thing_head().sample([detections(boxes)], [ground_truth(SIZE)])
    assert len(regions) == 0


def test_image_without_detections_gives_its_ground_truth():
    gt = ground_truth(SIZE, [(0, 0, 20, 20)])
    (regions,) = tiny_thing_head().sample([detections([])], [gt])
    assert regions.proposal_boxes.tensor.tolist() == [[0, 0, 20, 20]]


def head_of_config(**keys):
    cfg = load_config(str(config_dir() / "Base-SpatialFlow.yaml"))
    cfg.MODEL.RETINANET.NUM_CLASSES = THINGS
    for key, value in keys.items():
        cfg.MODEL.ROI_MASK_HEAD[key] = value
    shapes = {f"p{i}": ShapeSpec(channels=CHANNELS, stride=2**i) for i in (3, 4, 5)}
    return ThingHead(cfg, shapes)


def test_head_of_a_config_is_mask_rcnns():
    """Four 3x3 convolutions, a deconvolution, a 1x1 convolution (Sec. III-A)."""
    head = head_of_config(CONV_DIM=8)
    convs = [m for m in head.modules() if hasattr(m, "kernel_size") and hasattr(m, "weight")]
    assert [(type(m).__name__, m.kernel_size[0], m.out_channels) for m in convs] == [
        *[("Conv2d", 3, 8)] * 4,
        ("ConvTranspose2d", 2, 8),
        ("Conv2d", 1, THINGS),
    ]
    assert head.proposal_matcher.thresholds[1:-1] == [0.5]
    assert head(features(), [Boxes(torch.tensor([[0.0, 0, 9, 9]]))]).shape == (1, THINGS, 28, 28)


@pytest.mark.parametrize("make_head", [tiny_thing_head, head_of_config], ids=["plain", "config"])
@pytest.mark.parametrize(
    ("width", "height", "level"),
    [(5, 5, 3), (111, 112, 3), (112, 112, 4), (56, 224, 4), (223, 224, 4), (224, 224, 5)],
)
def test_regions_are_pooled_from_the_level_of_their_size(width, height, level, make_head):
    head = make_head()
    pooled = head.mask_pooler(
        features((3, 4, 5), (512, 512)),
        [Boxes(torch.tensor([[64.0, 64, 64 + width, 64 + height]]))],
    )
    assert pooled.shape == (1, CHANNELS, 14, 14)
    torch.testing.assert_close(pooled, torch.full_like(pooled, level))


def test_pooling_samples_the_features_where_the_box_lies():
    """On a ramp, what is pooled is the ramp at the centres of 14 x 14 bins (RoIAlign)."""
    ramp = torch.arange(12.0).expand(1, CHANNELS, 8, 12).contiguous()
    rest = features()[1:]
    pooled = tiny_thing_head().mask_pooler(
        [ramp, *rest], [Boxes(torch.tensor([[16.0, 8, 72, 56]]))]
    )
    # Columns 2 to 9 of P3, whose pixel i has its centre at i + 0.5.
    expected = 2 + (torch.arange(14) + 0.5) * 7 / 14 - 0.5
    torch.testing.assert_close(pooled[0, 0], expected.expand(14, 14))


def test_mask_loss_by_hand():
    logits = torch.zeros(2, 3, 1, 2)
    logits[0, 2] = torch.tensor([[2.0, -1.0]])
    logits[1, 0] = torch.tensor([[0.0, 3.0]])
    targets = torch.tensor([[[True, True]], [[False, False]]])

    def cross_entropy(logit):  # of the true side
        return math.log(1 + math.exp(-logit))

    first = (cross_entropy(2) + cross_entropy(-1)) / 2
    second = (cross_entropy(0) + cross_entropy(-3)) / 2
    loss = mask_loss(logits, torch.tensor([2, 0]), targets)
    assert loss.item() == pytest.approx(first + second)


def test_loss_is_the_mean_over_regions_of_all_images():
    head, levels = tiny_thing_head(), features(images=2)
    gts = [
        ground_truth(SIZE, [(0, 0, 20, 20), (9, 9, 60, 60)]),
        ground_truth(SIZE, [(8, 8, 40, 30)]),
    ]
    found = [detections([]), detections([(8, 8, 40, 32)])]
    loss = head.losses(levels, head.sample(found, gts))["loss_mask"]
    alone = [
        head.losses([x[i : i + 1] for x in levels], head.sample(found[i : i + 1], gts[i : i + 1]))
        for i in range(2)
    ]
    mean = (2 * alone[0]["loss_mask"] + 2 * alone[1]["loss_mask"]) / 4
    torch.testing.assert_close(loss, mean)


def test_targets_are_the_masks_inside_the_boxes():
    """A mask that fills its box is all ones, whatever lies around the box."""
    head = tiny_thing_head()
    head.mask_head.layers = lambda x: torch.full((len(x), THINGS, 28, 28), 50.0)
    gt = ground_truth(SIZE, [(8, 8, 40, 40)])
    (filled,) = head.sample([detections([])], [gt])
    assert head.losses(features(), [filled])["loss_mask"].item() == pytest.approx(0)
    half = gt[[0]]
    half.gt_masks = BitMasks(gt.gt_masks.tensor.clone())
    half.gt_masks.tensor[:, :, 24:] = False
    (halved,) = head.sample([detections([])], [half])
    assert head.losses(features(), [halved])["loss_mask"].item() == pytest.approx(25.0)


def test_no_regions_give_a_loss_of_zero_and_gradients_of_zero():
    head, levels = tiny_thing_head(), features(images=2)
    for level in levels:
        level.requires_grad_()
    empty = [ground_truth(SIZE)] * 2
    loss = head.losses(levels, head.sample([detections([])] * 2, empty))["loss_mask"]
    assert loss == 0
    loss.backward()
    for tensor in (*levels, *head.parameters()):
        assert tensor.grad is not None
        assert not tensor.grad.any()


@pytest.mark.parametrize("at_a_time", [1, 2, 32])
def test_predict_takes_the_channel_of_each_box(at_a_time, monkeypatch):
    monkeypatch.setattr("spatialflow.modeling.mask_head.REGIONS_AT_A_TIME_ON_CPU", at_a_time)
    head, levels = tiny_thing_head(), features(images=3)
    boxes = [Boxes(torch.tensor(b).reshape(-1, 4)) for b in ([[0.0, 0, 9, 9], [3, 3, 50, 60]], [])]
    boxes.append(Boxes(torch.tensor([[5.0, 5, 30, 30]])))
    classes = [torch.tensor([2, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([1])]
    probabilities = head(levels, boxes).sigmoid()
    first, second, third = head.predict(levels, boxes, classes)
    torch.testing.assert_close(first, probabilities[[0, 1], [2, 0]])
    assert second.shape == (0, 28, 28)
    torch.testing.assert_close(third, probabilities[[2], [1]])
