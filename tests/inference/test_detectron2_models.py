"""Detectron2's models as members: their stages make what the models make."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import nn

from spatialflow.config import load_config
from spatialflow.inference.detectron2_models import RCNNStages
from spatialflow.inference.ensemble import MultiViewModel
from spatialflow.inference.member import Member
from spatialflow.inference.views import View
from spatialflow.model_zoo import get_config_file

THINGS, STUFF = 3, 5


def small_rcnn(meta_arch="GeneralizedRCNN", heads="StandardROIHeads", mask_on=True):
    """One of Detectron2's models, with few channels and random weights that find something."""
    cfg = load_config(get_config_file("toy/panoptic_fpn_toy.yaml"))
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = meta_arch, heads
    cfg.MODEL.MASK_ON, cfg.MODEL.DEVICE = mask_on, "cpu"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in heads
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32, 32
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = THINGS, STUFF
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, parameter in model.roi_heads.named_parameters():
        if name.endswith(("cls_score.weight", "predictor.weight")):
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "kind",
    [
        {"meta_arch": "PanopticFPN"},
        {},
        {"heads": "CascadeROIHeads"},
        {"mask_on": False},
    ],
    ids=["Panoptic FPN", "Mask R-CNN", "Cascade Mask R-CNN", "Faster R-CNN"],
)
def test_one_view_is_the_model(image, kind):
    model = small_rcnn(**kind)
    many = MultiViewModel(
        [Member(RCNNStages(model), [View(T.ResizeShortestEdge(96, 999), False, 1.0)], "BGR")],
        input_format="BGR",
        nms_thresh=1.0,  # the model has its own
        max_detections=100,
        merge_settings=None,
        device="cpu",
    )
    inputs = [{"image": image, "height": 48, "width": 64}]
    with torch.no_grad():
        expected = model(inputs)[0]
    found = many(inputs)[0]
    ours, theirs = found["instances"], expected["instances"]
    assert len(theirs) > 5
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
    assert ours.has("pred_masks") == theirs.has("pred_masks")
    if theirs.has("pred_masks"):
        # The boxes were brought to the output size and back.
        same = ours.pred_masks == theirs.pred_masks
        assert same.float().mean() > 0.999
    assert ("sem_seg" in found) == ("sem_seg" in expected)
    if "sem_seg" in expected:
        assert torch.equal(found["sem_seg"], expected["sem_seg"])


def test_other_models_are_refused():
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    with pytest.raises(ValueError, match="RetinaNet with NoneType cannot be a member: give Spat"):
        RCNNStages(build_model(cfg))
