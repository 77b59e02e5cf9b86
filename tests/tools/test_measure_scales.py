"""The scales of a model's features at the start of its training, and the tables of them."""

import measure_scales
import pytest
import torch
from builders import make_input, tiny_model

from spatialflow import load_config
from spatialflow.model_zoo import get_config_file

SMALL = (
    "toy/spatialflow_toy.yaml",
    "toy/spatialflow_toy_lite0.yaml",
    "camvid/spatialflow_R_18_small.yaml",
    "camvid/spatialflow_lite0.yaml",
    "toy/spatialflow_toy_lite0_gfl_p2.yaml",
    "camvid/spatialflow_lite0_p2.yaml",
    "camvid/spatialflow_lite0_gfl_p2.yaml",
)
CLASSES = ["MODEL.RETINANET.NUM_CLASSES", "3", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "9"]
BAND = (0.2, 3.0)
"""Of the root mean square of every level and stage."""
INSIDE = ("p2", "p3", "p4", "p5", "p6")
"""P7 has few cells: its stages see more padding than picture."""


def start(config, *overrides):
    """What each level, stage and flow of a new model gives for a picture of noise."""
    cfg = load_config(get_config_file(config), [*CLASSES, *overrides])
    model = measure_scales.build_spatialflow(cfg).eval()
    image = torch.rand(3, 256, 320, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad(), measure_scales.feature_scales(model) as features:
        model.dense(model.preprocess_image([{"image": image}]).tensor)
    return features


def outside(features):
    """What of the levels and stages is not inside the band; flows may start at zero."""
    low, high = BAND
    return {
        f"{name} {level}": value
        for name, levels in features.items()
        for level, value in levels.items()
        if level in INSIDE and " to " not in name and not low < value < high
    }


@pytest.mark.parametrize("config", SMALL)
def test_small_models_start_with_features_of_one_scale(config):
    features = start(config)
    stages = load_config(get_config_file(config)).MODEL.SPATIALFLOW.NUM_STAGES
    assert {"P", *(f"{name.lower()} {count}" for name, count in stages.items())} <= set(features)
    assert outside(features) == {}


@pytest.mark.parametrize(
    "overrides",
    [
        ("MODEL.SPATIALFLOW.SUBNET_INIT", "normal", "MODEL.RETINANET.NORM", ""),
        ("MODEL.SPATIALFLOW.FLOW_INIT", "", "MODEL.RETINANET.NORM", ""),
        ("MODEL.FPN.NORM", "", "MODEL.RETINANET.NORM", ""),
    ],
)
def test_other_starts_leave_the_band(overrides):
    assert outside(start("toy/spatialflow_toy_lite0.yaml", *overrides))


def test_rows_name_stages_and_flows():
    names = [measure_scales.row_name(name) for name in ("cls.1", "thing.0.flows.reg")]
    assert names == ["cls 2", "reg to thing 1"]


def test_scales_are_those_of_the_features_and_gradients():
    model = tiny_model()
    batch = [make_input(boxes=[(8, 8, 40, 40)], seed=i) for i in range(2)]
    features, gradients = measure_scales.scales(model, batch)
    with torch.no_grad():
        images = model.preprocess_image(batch)
        outputs = model.extract_features(images.tensor)
    for task in ("cls", "reg", "stuff", "thing"):
        last = f"{task} {len(getattr(model.subnets, task))}"
        found = list(features[last].values())
        expected = [feature.square().mean().sqrt() for feature in getattr(outputs, task)]
        assert found == pytest.approx([float(x) for x in expected])
    assert set(gradients) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg"}
    # Boxes are learnt from the reg sub-network alone, while classes learn through its flows, too.
    assert gradients["loss_box_reg"]["cls"] == gradients["loss_box_reg"]["flows to stuff"] == 0
    assert min(gradients["loss_cls"][part] for part in ("cls", "reg", "flows to cls")) > 0
    model.zero_grad()
    model(batch)["loss_mask"].backward()
    weights = [p.grad for n, p in model.named_parameters() if n.startswith("subnets.stuff")]
    whole = [g for g in weights if g is not None]
    assert whole  # things learn from stuff
    total = sum(float(g.square().sum()) for g in whole) ** 0.5
    parts = gradients["loss_mask"]
    assert (parts["stuff"] ** 2 + parts["flows to stuff"] ** 2) ** 0.5 == pytest.approx(total)


def test_tables_leave_cells_empty_that_do_not_exist():
    table = measure_scales.table(
        {"P": {"p3": 1.0, "p6": 2.0}, "stuff 1": {"p3": 3.0}}, "rms", ".1f"
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["rms", "p3", "p6"]
    assert rows[2:] == [["P", "1.0", "2.0"], ["stuff 1", "3.0", ""]]
