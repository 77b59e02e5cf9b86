"""HTC's stages: what flows from where to where, what is sampled, what is averaged."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from small_htc import SIZE, losses_of, small_htc, training_image
from small_rcnn import THINGS
from torch import nn

from spatialflow.modeling.htc.roi_heads import SEMANTIC

THING = (20, 10, 60, 50)
OFF = ("MODEL.HTC.INTERLEAVED", False, "MODEL.HTC.MASK_FLOW", False)
NO_FUSION = ("MODEL.HTC.SEMANTIC_FUSION", [])


def gradients(module: nn.Module, loss: torch.Tensor) -> float:
    """The sum of the sizes of a loss's gradients in a module."""
    parameters = list(module.parameters())
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return sum(float(x.abs().sum()) for x in found if x is not None)


def test_flow_trains_the_first_mask_head_by_the_last_loss():
    model = small_htc()
    loss = losses_of(model, [training_image([THING])])["loss_mask_stage2"]
    first, second, last = model.roi_heads.mask_head
    assert gradients(first.mask_fcn1, loss) > 0
    assert gradients(second.flow, loss) > 0 and gradients(last.flow, loss) > 0
    assert gradients(first.predictor, loss) == gradients(second.deconv, loss) == 0


def test_masks_are_the_mean_of_heads_that_each_read_the_one_before():
    heads = small_htc("MODEL.HTC.SEMANTIC_FUSION", []).roi_heads
    features = {name: torch.randn(1, 32, *size) for name, size in pyramid_sizes().items()}
    boxes = Boxes(torch.tensor([[3.0, 4, 40, 50], [10, 10, 90, 60]]))
    found = Instances(SIZE, pred_boxes=boxes, pred_classes=torch.tensor([2, 0]))
    with torch.no_grad():
        masks = heads.forward_with_given_boxes(features, [found])[0].pred_masks
        pooled = heads.mask_pooler([features[f"p{i}"] for i in range(2, 6)], [boxes])
        previous, probabilities = None, []
        for head in heads.mask_head:
            x = pooled if previous is None else pooled + head.flow(previous)
            previous = head.mask_fcn2(head.mask_fcn1(x))
            logits = head.predictor(head.deconv(previous).relu())
            probabilities.append(logits[[0, 1], [2, 0]].sigmoid())
    torch.testing.assert_close(masks[:, 0], sum(probabilities) / 3)


def test_first_mask_head_has_no_weights_for_a_flow():
    names = {name.split(".")[2] for name, _ in small_htc().named_parameters() if ".flow." in name}
    assert names == {"1", "2"}


def test_switches_off_leave_three_mask_heads():
    model = small_htc(*OFF, *NO_FUSION)
    losses = losses_of(model, [training_image([THING])])
    heads = model.roi_heads.mask_head
    for stage in range(3):
        trained = [gradients(head, losses[f"loss_mask_stage{stage}"]) > 0 for head in heads]
        assert trained == [other == stage for other in range(3)]
    assert not any(".flow." in name for name, _ in model.named_parameters())
    assert model.semantic_head.embedding is None
    model.eval()
    features = {name: torch.randn(1, 32, *size) for name, size in pyramid_sizes().items()}
    boxes = Boxes(torch.tensor([[3.0, 4, 40, 50], [10, 10, 90, 60]]))
    found = Instances(SIZE, pred_boxes=boxes, pred_classes=torch.tensor([2, 0]))
    with torch.no_grad():
        masks = model.roi_heads.forward_with_given_boxes(features, [found])[0].pred_masks
        pooled = model.roi_heads.mask_pooler([features[f"p{i}"] for i in range(2, 6)], [boxes])
        logits = torch.stack([head.layers(pooled)[[0, 1], [2, 0]] for head in heads])
    torch.testing.assert_close(masks[:, 0], logits.sigmoid().mean(dim=0))


def pyramid_sizes():
    return {f"p{i}": (SIZE[0] >> i, SIZE[1] >> i) for i in range(2, 6)}


@pytest.mark.parametrize("fusion", [["box"], ["mask"], ["box", "mask"], []])
def test_embedding_reaches_the_heads_that_read_it(fusion):
    model = small_htc("MODEL.HTC.SEMANTIC_FUSION", fusion)
    losses = losses_of(model, [training_image([THING])])
    convs = model.semantic_head.convs
    for stage in range(3):
        for name, head in (("loss_cls", "box"), ("loss_mask", "mask")):
            reached = gradients(convs, losses[f"{name}_stage{stage}"]) > 0
            assert reached == (head in fusion), (name, stage)
    assert gradients(convs, losses["loss_sem_seg"]) > 0


@pytest.fixture
def recorded(monkeypatch):
    """A model whose samplings and mask regions are kept, and where they are kept."""

    def make(*overrides):
        model = small_htc(*overrides)
        heads, calls = model.roi_heads, []
        sample, mask_loss = heads._sample, heads._mask_loss

        def sampling(proposals, targets, stage):
            calls.append(("sample", stage, sample(proposals, targets, stage)))
            return calls[-1][2]

        def losing(features, regions, stage):
            calls.append(("mask", stage, regions))
            return mask_loss(features, regions, stage)

        monkeypatch.setattr(heads, "_sample", sampling)
        monkeypatch.setattr(heads, "_mask_loss", losing)
        return model, calls

    return make


@pytest.mark.parametrize("interleaved", [True, False])
def test_masks_are_trained_on_refined_boxes_when_interleaved(recorded, interleaved):
    model, calls = recorded("MODEL.HTC.INTERLEAVED", interleaved)
    nn.init.normal_(model.roi_heads.box_predictor[0].bbox_pred.weight, std=0.05)
    losses_of(model, [training_image([THING])])
    per_stage = ["sample", "sample", "mask"] if interleaved else ["sample", "mask"]
    assert [kind for kind, _, _ in calls] == 3 * per_stage
    truth = tuple(map(float, THING))  # added to every sampling
    boxes = [{*map(tuple, x.proposal_boxes.tensor.tolist())} - {truth} for _, _, (x,) in calls[:3]]
    before, last_sampled = boxes[0], boxes[len(per_stage) - 2]
    assert before and boxes[len(per_stage) - 1] <= last_sampled
    assert before.isdisjoint(last_sampled) == interleaved


def test_every_sampling_has_the_ground_truth_once(recorded):
    model, calls = recorded()
    losses_of(model, [training_image([THING])])
    for kind, _, (regions,) in calls:
        if kind == "sample":
            truth = (regions.proposal_boxes.tensor == torch.tensor(THING).float()).all(dim=1)
            assert truth.sum() == 1


def test_stages_match_at_rising_overlap(recorded):
    model, calls = recorded("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", [0.5, 0.6, 0.7])
    losses_of(model, [training_image([THING])])
    thing = Boxes(torch.tensor([THING]).float())
    for _, stage, (regions,) in calls:
        overlap = pairwise_iou(thing, regions.proposal_boxes)[0]
        positive = regions.gt_classes < THINGS
        assert torch.equal(positive, overlap >= (0.5, 0.6, 0.7)[stage])


def test_weights_of_stages_scale_their_losses():
    batch = [training_image([THING])]
    one = losses_of(small_htc("MODEL.HTC.STAGE_LOSS_WEIGHTS", [1.0, 1.0, 1.0]), batch)
    other = losses_of(small_htc("MODEL.HTC.STAGE_LOSS_WEIGHTS", [1.0, 0.5, 0.25]), batch)
    for stage, weight in enumerate((1, 0.5, 0.25)):
        for name in ("loss_cls", "loss_box_reg", "loss_mask"):
            key = f"{name}_stage{stage}"
            torch.testing.assert_close(other[key], weight * one[key])


def test_scores_are_the_softmax_of_the_mean_logits(monkeypatch):
    model = small_htc("TEST.DETECTIONS_PER_IMAGE", 1000, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0)
    heads, logits = model.roi_heads, []
    run_stage = heads._run_stage

    def recording(*args):
        predictions = run_stage(*args)
        logits.append(predictions[0])
        return predictions

    monkeypatch.setattr(heads, "_run_stage", recording)
    found = model([training_image()])[0]["instances"]
    expected = torch.stack(logits).mean(dim=0).softmax(dim=1)[:, :-1]
    kept = expected[expected > 0.001].sort(descending=True).values
    assert len(logits) == 3
    torch.testing.assert_close(found.scores, kept[: len(found)])


def test_without_foreground_the_mask_loss_is_zero_with_a_graph():
    model = small_htc()
    nothing = [training_image()["instances"]]
    regions = [Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0))]
    features = dict(model.dense(torch.zeros(1, 3, *SIZE)).features)
    assert SEMANTIC in features and len(nothing[0]) == 0
    loss = model.roi_heads._mask_loss(features, regions, 2)
    loss.backward()
    heads = model.roi_heads.mask_head
    trained = [heads[0].mask_fcn1, heads[1].flow, heads[2].flow, heads[2].predictor]
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for m in trained for p in m.parameters())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEMANTIC_FUSION", ["boxes"], "SEMANTIC_FUSION is .'boxes'.; give any of 'box', 'mask'"),
        ("STAGE_LOSS_WEIGHTS", [1.0], "STAGE_LOSS_WEIGHTS is .1.0., but .* has 3 stages"),
    ],
)
def test_values_that_cannot_be_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        small_htc(f"MODEL.HTC.{key}", value)


def test_boxes_alone():
    model = small_htc("MODEL.MASK_ON", False)
    assert not model.predicts_masks and model.merge is None
    losses = losses_of(model, [training_image([THING])])
    assert not any("mask" in name for name in losses)
    assert not model.eval()([training_image()])[0]["instances"].has("pred_masks")


def test_refined_boxes_leave_out_those_of_the_ground_truth():
    heads = small_htc().train().roi_heads
    truth, other = torch.tensor([[1.0, 2, 30, 40]]), torch.tensor([[5.0, 5, 20, 20]])
    sampled = Instances(
        SIZE, proposal_boxes=Boxes(torch.cat([other, truth])), gt_classes=torch.tensor([1, 1])
    )
    sampled.gt_boxes = Boxes(torch.cat([truth, truth]))
    with EventStorage():
        (refined,) = heads._refined([torch.cat([other + 1, truth + 1])], [sampled])
    assert torch.equal(refined.proposal_boxes.tensor, other + 1)
