"""Class activation maps: what they answer to and what they do not."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import THINGS, make_input, tiny_model

from spatialflow.tools.class_activation import class_activations, heat_map

SIZE = (48, 64)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_model().eval()


@pytest.fixture
def inputs():
    return make_input(SIZE)


def test_maps_have_the_size_asked_for_and_are_not_negative(model, inputs):
    maps = class_activations(model, inputs, (33, 57))
    assert maps.cls.shape == (THINGS, 33, 57)
    assert maps.stuff.shape == (model.stuff_head.predictor.out_channels, 33, 57)
    assert maps.cls.min() >= 0 and maps.stuff.min() >= 0
    assert maps.cls.max() > 0 and maps.stuff.max() > 0


def test_biases_do_not_count(model, inputs):
    before = class_activations(model, inputs, SIZE)
    torch.nn.init.constant_(model.detector.cls_score.bias, 3.0)
    torch.nn.init.constant_(model.stuff_head.predictor.bias, 3.0)
    after = class_activations(model, inputs, SIZE)
    torch.testing.assert_close(after.cls, before.cls)
    torch.testing.assert_close(after.stuff, before.stuff, atol=1e-5, rtol=1e-5)


def test_a_class_without_weights_is_active_nowhere(model, inputs):
    with torch.no_grad():
        model.detector.cls_score.weight.unflatten(0, (-1, THINGS))[:, 1] = 0
        model.stuff_head.predictor.weight[2] = 0
    maps = class_activations(model, inputs, SIZE)
    assert maps.cls[1].abs().max() == 0 and maps.cls[0].max() > 0
    assert maps.stuff[2].abs().max() < 1e-6 and maps.stuff[1].max() > 0


def test_stuff_map_is_the_linear_answer_of_the_last_layer(model, inputs):
    head = model.stuff_head
    features = model.extract_features(model.preprocess_image([inputs]).tensor)
    last = sum(h(x) for h, x in zip(head.scale_heads, features.stuff, strict=True))
    expected = F.conv2d(last, head.predictor.weight)
    expected = F.interpolate(expected, (64, 64), mode="bilinear", align_corners=False)
    expected = expected[0, :, : SIZE[0], : SIZE[1]].relu()
    found = class_activations(model, inputs, SIZE).stuff
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_without_a_stuff_branch_there_is_no_stuff_map(inputs):
    assert class_activations(tiny_model(stuff=False).eval(), inputs, SIZE).stuff is None


def test_heat_is_blue_for_nothing_and_red_for_the_greatest():
    image = np.zeros((2, 2, 3), np.uint8)
    heat = heat_map(image, np.array([[0, 0], [0, 7.0]]))
    assert heat[0, 0].argmax() == 0
    assert heat[1, 1].argmax() == 2
    assert (heat_map(image, np.zeros((2, 2))) == heat[0, 0]).all()
