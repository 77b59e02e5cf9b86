"""One colour for a class, shades for its instances."""

import colorsys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialflow.data.categories import Category
from spatialflow.visualization import segment_colors
from spatialflow.visualization.colors import instance_shade

CAR = Category(1, "car", (200, 60, 50), True)
DOG = Category(2, "dog", (60, 80, 200), True)
SKY = Category(3, "sky", (70, 130, 180), False)
COLORS = st.tuples(*[st.integers(0, 255)] * 3)


def test_stuff_and_the_first_instance_have_the_colour_of_the_class():
    assert segment_colors([SKY, CAR, SKY, DOG]) == [SKY.color, CAR.color, SKY.color, DOG.color]


def test_instances_are_counted_in_their_class():
    assert segment_colors([CAR, DOG, CAR]) == segment_colors([DOG, CAR, CAR])[1:2] + [
        DOG.color,
        instance_shade(CAR.color, 1),
    ]


def test_a_number_keeps_its_shade_in_any_company():
    alone = segment_colors([CAR], [7])
    assert segment_colors([DOG, CAR, SKY, CAR], [3, 9, None, 7])[3:] == alone


@given(COLORS, st.integers(1, 10**6))
def test_shades_are_of_the_hue_of_the_class_and_neither_black_nor_white(color, number):
    shade = instance_shade(color, number)
    assert all(0 <= v <= 255 for v in shade)
    hue, lightness, saturation = colorsys.rgb_to_hls(*(v / 255 for v in shade))
    assert 0.15 < lightness < 0.9
    wanted, _, saturated = colorsys.rgb_to_hls(*(v / 255 for v in color))
    if saturated > 0.2 and saturation > 0.2:
        assert min(abs(hue - wanted), 1 - abs(hue - wanted)) < 0.03


@pytest.mark.parametrize("color", [CAR.color, (0, 0, 0), (255, 255, 255), (128, 64, 128)])
def test_the_instances_of_a_picture_differ(color):
    shades = [instance_shade(color, number) for number in range(12)]
    distance = min(
        sum(abs(a - b) for a, b in zip(one, other, strict=True))
        for i, one in enumerate(shades)
        for other in shades[:i]
    )
    assert distance >= 8
