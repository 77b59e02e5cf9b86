"""Views from a config, and what a view does to an image and to boxes."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances

from spatialflow.config import add_spatialflow_config
from spatialflow.inference.views import apply_view, flip_instances, views_from_config


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_spatialflow_config(cfg)
    return cfg


def shapes(cfg, height=60, width=100):
    """(height, width) and flip of each view of an image that is bright on its left."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, :, : width // 4] = 200
    shown = [(view, apply_view(view, image)) for view in views_from_config(cfg)]
    for view, x in shown:
        assert (x[0, 0, -1] > x[0, 0, 0]) == view.flip
    return [(tuple(x.shape[1:]), view.flip, view.weight) for view, x in shown]


def test_plain_inference_is_one_view(cfg):
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 30, 1000
    assert shapes(cfg) == [((30, 50), False, 1.0)]


def test_scales_are_longer_and_shorter_side(cfg):
    cfg.TEST.AUG.ENABLED = True
    cfg.TEST.AUG.SCALES = [[100, 90], [400, 90]]
    cfg.TEST.AUG.WEIGHTS = [1.0, 0.5]
    assert shapes(cfg) == [
        ((60, 100), False, 1.0),
        ((60, 100), True, 1.0),
        ((90, 150), False, 0.5),
        ((90, 150), True, 0.5),
    ]
    cfg.TEST.AUG.FLIP = False
    assert shapes(cfg, height=100, width=60)[0] == ((100, 60), False, 1.0)
    assert len(shapes(cfg)) == 2


def test_detectron2s_sizes_where_no_scales_are_given(cfg):
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.FLIP = True, False
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (30, 90), 100
    assert [size for size, *_ in shapes(cfg)] == [(30, 50), (60, 100)]


@pytest.mark.parametrize("library, antialiased", [("pil", True), ("cv2", False)])
def test_resizing_is_that_of_the_config(cfg, library, antialiased):
    cfg.INPUT.RESIZE_WITH, cfg.INPUT.MIN_SIZE_TEST = library, 8
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, :, ::8] = 255  # one line in eight
    (view,) = views_from_config(cfg)
    assert bool(apply_view(view, image).float().mean() > 16) == antialiased


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("SCALES", [[100, 200]], r"\[100, 200\] is no pair"),
        ("SCALES", [800], "800 is no pair"),
        ("SCALES", [[100, 0]], "no pair"),
        ("WEIGHTS", [1.0], "for each of the 9 scales"),
        ("WEIGHTS", [1.0] * 8 + [0.0], "over 0"),
    ],
)
def test_bad_keys_are_named(cfg, key, value, message):
    cfg.TEST.AUG.ENABLED = True
    cfg.TEST.AUG[key] = value
    with pytest.raises(ValueError, match=rf"TEST\.AUG\.{key}.*{message}"):
        views_from_config(cfg)


def test_a_fixed_size_is_that_of_all_views(cfg):
    cfg.INPUT.FIXED_SIZE = (40, 30)
    assert shapes(cfg) == [((40, 30), False, 1.0)]
    cfg.TEST.AUG.ENABLED = True
    assert shapes(cfg) == [((40, 30), False, 1.0), ((40, 30), True, 1.0)]
    cfg.TEST.AUG.SCALES = [[100, 90]]
    with pytest.raises(ValueError, match=r"TEST\.AUG\.SCALES has no effect with INPUT\.FIXED_SIZE"):
        views_from_config(cfg)


def test_flipping_boxes_twice_brings_them_back():
    boxes = torch.tensor([[0.0, 1, 10, 5], [90, 2, 100, 3]])
    instances = Instances((50, 100), pred_boxes=Boxes(boxes), scores=torch.ones(2))
    flipped = flip_instances(instances)
    assert flipped.pred_boxes.tensor.tolist() == [[90, 1, 100, 5], [0, 2, 10, 3]]
    assert torch.equal(flip_instances(flipped).pred_boxes.tensor, boxes)
    assert torch.equal(instances.pred_boxes.tensor, boxes) and flipped.has("scores")
