"""Training batches as Detectron2's own mapper makes them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from builders import THINGS, make_input, tiny_model
from detectron2.data import DatasetMapper
from detectron2.structures import BitMasks, BoxMode, PolygonMasks

SIZE = (64, 96)
BOXES = [(8, 8, 40, 40), (50, 10, 90, 60)]


def assert_trains(model, batch):
    losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    return losses


@pytest.fixture
def mapped(tmp_path):
    """Detectron2's mapper on an image with things and one without."""

    def run(mask_format="polygon", semantic=True, boxes=BOXES, **kwargs):
        image, labels = np.full((*SIZE, 3), 90, np.uint8), np.ones(SIZE, np.uint8)
        paths = [str(tmp_path / name) for name in ("image.png", "labels.png")]
        for path, pixels in zip(paths, (image, labels), strict=True):
            cv2.imwrite(path, pixels)
        mapper = DatasetMapper(
            is_train=True,
            augmentations=[],
            image_format="BGR",
            use_instance_mask=True,
            instance_mask_format=mask_format,
            **kwargs,
        )
        annotations = [
            {
                "bbox": [x1, y1, x2, y2],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": i % THINGS,
                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                "iscrowd": 0,
            }
            for i, (x1, y1, x2, y2) in enumerate(boxes)
        ]
        entry = {"file_name": paths[0], "height": SIZE[0], "width": SIZE[1]}
        entry |= {"image_id": 1, "annotations": annotations}
        return mapper(entry | ({"sem_seg_file_name": paths[1]} if semantic else {}))

    return run


@pytest.mark.parametrize(
    ("mask_format", "kind"), [("polygon", PolygonMasks), ("bitmask", BitMasks)]
)
def test_detectron2s_batches_train(mapped, mask_format, kind):
    model = tiny_model()
    batch = [mapped(mask_format), mapped(mask_format, boxes=())]
    assert isinstance(batch[0]["instances"].gt_masks, kind)
    assert "crowd_mask" not in batch[0] and not batch[1]["instances"].has("gt_masks")
    assert assert_trains(model, batch)["loss_mask"] > 0
    assert not batch[1]["instances"].has("gt_masks")


def test_polygons_train_as_the_masks_they_stand_for(mapped):
    model = tiny_model()
    polygons, masks = (model([mapped(kind)]) for kind in ("polygon", "bitmask"))
    for name, loss in polygons.items():
        torch.testing.assert_close(loss, masks[name], rtol=1e-2, atol=1e-3)


def test_instances_alone_train_without_the_stuff_branch(mapped):
    batch = [mapped(semantic=False), mapped(semantic=False, boxes=())]
    assert_trains(tiny_model(stuff=False), batch)
    with pytest.raises(ValueError, match=r"'sem_seg', which image .*image\.png .*PanopticMapper"):
        tiny_model()(batch)


def test_images_without_things_train_alone(mapped):
    batch = [mapped(boxes=()), mapped(boxes=())]
    assert assert_trains(tiny_model(), batch)["loss_mask"] == 0


def test_no_crowd_mask_is_no_crowd():
    image = make_input(boxes=BOXES)
    model = tiny_model()
    expected = model([image])
    del image["crowd_mask"]
    assert model([image]) == expected


@pytest.mark.parametrize("key", ["instances", "sem_seg"])
def test_targets_that_are_not_there_are_named(key):
    image = make_input(boxes=BOXES) | {"file_name": "street.jpg"}
    del image[key]
    message = rf"Training needs '{key}', which image street\.jpg does not have.*PanopticMapper"
    with pytest.raises(ValueError, match=message):
        tiny_model()([image])


def test_things_without_masks_are_named():
    image = make_input(boxes=BOXES)
    image["instances"].remove("gt_masks")
    with pytest.raises(ValueError, match=r"image without a file_name has no gt_masks.*THING_ON"):
        tiny_model()([image])
    assert_trains(tiny_model(things=False), [image])
