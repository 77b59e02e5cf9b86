"""The rows of SPINet's tables: what their configs change, and that the paper prints them."""

import json

import pytest
from recordings import PAPER_TABLES

from spatialflow.model_zoo import get_config
from spatialflow.tools.zoo.results import PANOPTIC_RESULTS

NO_TASKS = {"STUFF_DICE": False, "LOSS_WEIGHTS": {"INTER": 0.0, "INTRA": 0.0}}
ABLATIONS = {
    "table_3_none": NO_TASKS,
    "table_3_dice": {"LOSS_WEIGHTS": {"INTER": 0.0, "INTRA": 0.0}},
    "table_3_dice_inter": {"LOSS_WEIGHTS": {"INTRA": 0.0}},
    "table_3_inter_intra": {"STUFF_DICE": False},
    "table_5_two_features": {"TWO_FEATURES": True},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_changes_what_its_row_says_and_nothing_else(name):
    expected = get_config("SPINet/spinet_R_50_Cityscapes.yaml")
    keys = expected.MODEL.SPINET
    for key, value in ABLATIONS[name].items():
        keys[key].update(value) if isinstance(value, dict) else keys.update({key: value})
    assert get_config(f"SPINet/ablations/{name}.yaml") == expected


@pytest.mark.parametrize(
    ("name", "weights"),
    [("spinet_R_50", (1, 0.5, 3, 0, 1)), ("spinet_R_50_Cityscapes", (1, 1, 5, 20, 1))],
)
def test_weights_are_those_of_eq_7(name, weights):
    model = get_config(f"SPINet/{name}.yaml").MODEL
    terms = model.SPINET.LOSS_WEIGHTS
    ours = (terms.CLS, model.SEM_SEG_HEAD.LOSS_WEIGHT, terms.THING, terms.INTER, terms.INTRA)
    assert ours == weights


def test_rows_are_those_of_the_paper():
    printed = json.loads(PAPER_TABLES.read_text())["spinet"]
    triples = {tuple(row[i : i + 3]) for row in printed for i in range(len(row) - 2)}
    published = [r.published for r in PANOPTIC_RESULTS["SPINet"] if r.published]
    assert len(published) == 9
    assert set(published) <= triples
