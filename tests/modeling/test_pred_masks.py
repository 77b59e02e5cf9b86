"""The masks in the model's output are what Detectron2's users get: a bool tensor (N, H, W)."""

import pickle

import numpy as np
import pytest
import torch
from builders import make_input, tiny_model
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer
from pycocotools import mask as mask_util
from torchvision import tv_tensors
from torchvision.utils import draw_segmentation_masks

from spatialflow import optimize
from spatialflow.modeling.mask_head import paste_masks
from spatialflow.modeling.panoptic import HeuristicMerge

SIZE = (64, 96)
METADATA = Metadata(thing_classes=["a", "b", "c"])


def model_with_detections(**kwargs):
    torch.manual_seed(0)
    model = tiny_model(**kwargs).eval()
    torch.nn.init.zeros_(model.detector.cls_score.bias)
    return model


@pytest.fixture(scope="module")
def instances():
    (result,) = model_with_detections()([make_input(SIZE)])
    found = result["instances"]
    covered = found.pred_masks.flatten(1).float().mean(dim=1)
    return found[(covered > 0.05) & (covered < 0.9)][:4]


@pytest.fixture
def masks(instances):
    assert len(instances) == 4
    return instances.pred_masks


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("merge", [None, HeuristicMerge()], ids=["no_merge", "merge"])
def test_they_are_a_bool_tensor(optimized, merge):
    model = model_with_detections(merge=merge)
    model = optimize(model) if optimized else model
    (result,) = model([make_input(SIZE)])
    found = result["instances"]
    assert type(found.pred_masks) is torch.Tensor and found.pred_masks.dtype == torch.bool
    assert found.pred_masks.shape == (len(found), *SIZE) and len(found) > 10
    assert found.pred_masks.any() and not found.pred_masks.all()


def test_image_without_detections():
    model = model_with_detections()
    torch.nn.init.constant_(model.detector.cls_score.bias, -100)
    (result,) = model([make_input(SIZE)])
    masks = result["instances"].pred_masks
    assert masks.shape == (0, *SIZE) and masks.dtype == torch.bool


def test_masks_lie_on_their_boxes():
    probabilities = torch.zeros(2, 28, 28)
    probabilities[0] = 0.9
    probabilities[1, :, 14:] = 0.9
    boxes = Boxes(torch.tensor([[2.0, 1, 6, 4], [0, 0, 8, 5]]))
    expected = torch.zeros(2, 5, 8, dtype=torch.bool)
    expected[0, 1:4, 2:6] = True
    expected[1, :, 4:] = True
    assert torch.equal(paste_masks(probabilities, Instances((5, 8), pred_boxes=boxes)), expected)


def test_masks_are_detectron2s_pasting_of_the_probabilities(monkeypatch):
    model, kept = model_with_detections(), []
    predict = model.predict_masks
    monkeypatch.setattr(
        model, "predict_masks", lambda *args: kept.append(predict(*args)) or kept[0]
    )
    (result,) = model([make_input(SIZE)])
    found = result["instances"]
    expected = paste_masks_in_image(kept[0][0], found.pred_boxes, SIZE, 0.5)
    assert torch.equal(found.pred_masks, expected)


def test_torch_takes_them(masks):
    assert isinstance(masks, torch.Tensor) and masks.size(0) == 4 and masks.size() == (4, *SIZE)
    assert torch.equal(torch.as_tensor(masks), masks)
    assert torch.equal(masks.new_tensor(masks.numpy()), masks)
    with pytest.warns(UserWarning, match="copy construct"):
        assert torch.equal(torch.tensor(masks), masks)
    assert (masks * 255).max() == 255
    assert torch.equal(1 - masks.float(), (~masks).float())
    assert masks[None].shape == (1, 4, *SIZE) and torch.equal(masks[...], masks)
    assert masks[True].shape == (1, 4, *SIZE)
    assert torch.sum(input=masks) == masks.numpy().sum()
    assert torch.equal(torch.cat(tensors=[masks, masks])[4:], masks)


def test_they_are_pickled_as_tensors(instances, masks):
    again = pickle.loads(pickle.dumps(instances))
    assert type(again.pred_masks) is torch.Tensor and torch.equal(again.pred_masks, masks)


def test_torchvision_takes_them(masks):
    assert torch.equal(tv_tensors.Mask(masks), masks)
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    for mask in masks:
        drawn = draw_segmentation_masks(image, mask, alpha=1.0, colors="white")
        assert torch.equal(drawn.all(dim=0), mask)
    assert draw_segmentation_masks(image, masks).any()


def test_detectron2s_structures_and_evaluator_take_them(instances, masks):
    assert torch.equal(BitMasks(masks).tensor, masks)
    both = Instances.cat([instances[:2], instances[2:]])
    assert torch.equal(both.pred_masks, masks)
    decoded = [mask_util.decode(x["segmentation"]) for x in instances_to_coco_json(instances, 1)]
    assert np.array_equal(np.array(decoded, bool), masks.numpy())


@pytest.mark.parametrize("visualizer", [Visualizer, VideoVisualizer])
def test_detectron2s_visualizers_draw_them(instances, masks, visualizer):
    frame = np.zeros((*SIZE, 3), np.uint8)
    if visualizer is Visualizer:
        drawn = Visualizer(frame, METADATA).draw_instance_predictions(instances)
    else:
        drawn = VideoVisualizer(METADATA).draw_instance_predictions(frame, instances)
    assert drawn.get_image()[masks.any(dim=0).numpy()].any(axis=1).mean() > 0.9


def test_overlay_of_masks(masks):
    drawn = Visualizer(np.zeros((*SIZE, 3), np.uint8), METADATA).overlay_instances(masks=masks)
    assert drawn.get_image()[masks.any(dim=0).numpy()].any(axis=1).mean() > 0.9
