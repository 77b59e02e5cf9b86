"""What every panoptic model offers: the order of the steps, the adapters, what is left out."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import GeneralizedRCNN, PanopticFPN
from stand_ins import Recorded
from torch import nn

from spatialflow.modeling import HeuristicMerge, PanopticModel, as_panoptic_model, register_adapter
from spatialflow.modeling.adapters import configured_class, panoptic_class
from spatialflow.modeling.rcnn import PanopticFPNModel, RCNNModel

HEIGHT, WIDTH = 24, 32
BOXES = (torch.tensor([[4.0, 4, 20, 20]]), torch.tensor([0.9]), torch.tensor([1]))
MASKS = torch.full((1, 14, 14), 9.0)
STUFF = torch.eye(3)[2][:, None, None].expand(3, HEIGHT, WIDTH)
MERGE = HeuristicMerge(stuff_area_limit=1, box_fill_min_free=None)


def an_input(*size, **output_size):
    return {"image": torch.zeros(3, *(size or (HEIGHT, WIDTH)), dtype=torch.uint8), **output_size}


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        ({"candidates": BOXES, "masks": MASKS, "stuff": STUFF, "merge": MERGE}, "ips"),
        ({"candidates": BOXES, "masks": MASKS, "stuff": STUFF}, "is"),
        ({"candidates": BOXES, "masks": MASKS}, "i"),
        ({"candidates": BOXES, "stuff": STUFF}, "is"),
        ({"candidates": BOXES}, "i"),
        ({"stuff": STUFF}, "s"),
    ],
    ids=["all", "no merge", "no stuff", "no masks", "boxes", "stuff"],
)
def test_result_has_what_the_model_has(parts, keys):
    (result,) = Recorded(**parts).eval()([an_input()])
    assert "".join(sorted(key[0] for key in result)) == keys
    if "instances" in result:
        assert result["instances"].has("pred_masks") == ("masks" in parts)
    if "panoptic_seg" in result:
        panoptic, segments = result["panoptic_seg"]
        assert [(s["isthing"], s["category_id"]) for s in segments] == [(True, 1), (False, 2)]
        assert torch.equal(panoptic == 1, result["instances"].pred_masks[0])


def test_images_that_pad_to_one_size_run_together():
    model = Recorded(stuff=STUFF).eval()
    model.size_divisibility = 8
    images = [an_input(24, 32), an_input(24, 33), an_input(20, 25), an_input(17, 40)]
    results = model(images)
    assert len(results) == 4 and all("sem_seg" in r for r in results)
    assert model.batches == [2, 2]


def test_each_result_is_that_of_its_image():
    class Brightness(Recorded):
        def stuff_scores(self, dense, image_sizes, output_sizes):
            return [x.mean().expand(1, *size) for x, size in zip(dense, output_sizes, strict=True)]

    images = [an_input(24, 32), an_input(24, 40), an_input(24, 32, height=12, width=9)]
    for i, image in enumerate(images):
        image["image"] += i
    results = Brightness(stuff=STUFF).eval()(images)
    assert [int(r["sem_seg"][0, 0, 0]) for r in results] == [0, 1, 2]
    assert [r["sem_seg"].shape[1:] for r in results] == [(24, 32), (24, 40), (12, 9)]


def test_training_of_a_model_without_losses_is_refused():
    with pytest.raises(RuntimeError, match="Recorded is for inference only"):
        Recorded(stuff=STUFF).train()([an_input()])


class Plain(nn.Module):
    """A model that exists elsewhere."""


class MorePlain(Plain):
    pass


@register_adapter(Plain)
class PlainModel(Recorded):
    def __init__(self, model, cfg):
        super().__init__(stuff=STUFF)
        self.model, self.cfg = model, cfg


@pytest.mark.parametrize("training", [True, False])
def test_adapter_of_a_class_and_those_derived_from_it(training):
    model, cfg = MorePlain().train(training), get_cfg()
    adapted = as_panoptic_model(model, cfg)
    assert isinstance(adapted, PlainModel) and adapted.model is model and adapted.cfg is cfg
    assert adapted.training == model.training == training
    assert as_panoptic_model(adapted, cfg) is adapted


def test_nearest_adapter_is_taken():
    class Own(PanopticFPN):
        pass

    assert panoptic_class(Own) is panoptic_class(PanopticFPN) is PanopticFPNModel
    assert panoptic_class(GeneralizedRCNN) is RCNNModel
    assert panoptic_class(Recorded) is Recorded
    cfg = get_cfg()
    assert configured_class(cfg) is RCNNModel
    cfg.MODEL.META_ARCHITECTURE = "SpatialFlow"
    assert issubclass(configured_class(cfg), PanopticModel)


def test_class_without_an_adapter_is_named():
    with pytest.raises(ValueError, match="Sequential is not a panoptic model .*PanopticModel"):
        as_panoptic_model(nn.Sequential(), get_cfg())
