"""Every row of the papers' tables and its config, or why it has none."""

from __future__ import annotations

import json
import re

import pytest
from recordings import PAPER_TABLES

from spatialflow.model_zoo import config_names
from spatialflow.tools.zoo.results import DETECTION_RESULTS, PANOPTIC_RESULTS

PAPERS = json.loads(PAPER_TABLES.read_text())
"""What the papers print, see tests/recordings/README.md."""

OTHERS = "other people's model"
NO_MAP = "its training is shorter, or it is of one branch"

R50 = "COCO/spatialflow_R_50_20e"
R101 = "COCO/spatialflow_R_101_20e"
DCN = "COCO/spatialflow_R_101_DCN_20e_ms_tta"
COCO = "COCO/ablations/"
CITY = "Cityscapes/ablations/"

# Table -> [(row, its first numbers, config or reason)], rows in the papers' order. PQ, PQ of things
# and PQ of stuff; box AP, AP50, AP75 in Table XII; of JSIS-Net's training of one or two branches
# mIoU, AP50 and PQ; no numbers in a figure.
ROWS = {
    "Table I": [
        ("JSIS-Net", (27.2,), OTHERS),
        ("DeeperLab", (34.3,), OTHERS),
        ("PanopticFPN", (40.9,), OTHERS),
        ("OANet", (41.3,), OTHERS),
        ("SSAP", (36.9,), OTHERS),
        ("SpatialFlow", (42.9, 49.5, 33.0), R101),
    ],
    "Table II": [
        ("Megvii", (53.2,), OTHERS),
        ("Caribbean", (46.8,), OTHERS),
        ("PKU 360", (46.3,), OTHERS),
        ("AdaptIS", (42.8,), OTHERS),
        ("AUNet", (46.5,), OTHERS),
        ("UPSNet", (46.6,), OTHERS),
        ("SOGNet", (47.8,), OTHERS),
        ("SpatialFlow", (47.9, 54.5, 38.0), DCN),
    ],
    "Table III": [
        ("PanopticFPN-R101", (58.1,), OTHERS),
        ("AUNet-R101", (59.0,), OTHERS),
        ("TASCNet-R101-COCO", (59.2,), OTHERS),
        ("UPSNet-R101-COCO-M", (61.8,), OTHERS),
        ("SSAP-R101-M", (61.1,), OTHERS),
        ("AdaptIS-X101-M", (62.0,), OTHERS),
        ("SpatialFlow-R101", (59.6, 55.0, 63.1), "Cityscapes/spatialflow_R_101"),
        (
            "SpatialFlow-R101-COCO-M",
            (62.5, 56.6, 66.8),
            "Cityscapes/spatialflow_R_101_COCO_step_2_tta",
        ),
    ],
    "Table IV": [
        ("1.0", (37.5, 41.8, 30.9), COCO + "table_4_lambda_1.0"),
        ("0.75", (38.2, 43.0, 31.1), COCO + "table_4_lambda_0.75"),
        ("0.5", (38.8, 44.0, 31.0), COCO + "table_4_lambda_0.5"),
        ("0.3", (39.1, 44.5, 30.9), COCO + "table_4_lambda_0.3"),
        ("0.25", (39.3, 45.1, 30.5), COCO + "naive_600px"),
        ("0.2", (39.0, 44.9, 30.0), COCO + "table_4_lambda_0.2"),
    ],
    "Table V": [
        ("neither", (39.7, 46.0, 30.2), COCO + "naive"),
        ("sub-nets", (40.3, 46.2, 31.4), COCO + "table_5_subnets"),
        ("flows", (40.2, 46.5, 30.7), COCO + "table_5_flows"),
        ("sub-nets, flows", (40.9, 46.8, 31.9), R50),
    ],
    "Table VI": [
        ("neither", (57.3, 53.5, 60.0), CITY + "naive"),
        ("sub-nets", (57.5, 53.6, 60.3), CITY + "table_6_subnets"),
        ("flows", (58.0, 54.3, 60.8), CITY + "table_6_flows"),
        ("sub-nets, flows", (58.6, 54.9, 61.4), "Cityscapes/spatialflow_R_50"),
    ],
    "Table VII": [
        ("0", (39.7, 46.0, 30.2), COCO + "naive"),
        ("1", (39.9, 46.3, 30.3), COCO + "table_7_thing_stages_1"),
        ("2", (39.7, 46.0, 30.2), COCO + "table_7_thing_stages_2"),
        ("3", (39.9, 46.2, 30.3), COCO + "table_7_thing_stages_3"),
        ("4", (39.7, 45.9, 30.3), COCO + "table_7_thing_stages_4"),
    ],
    "Table VIII": [
        ("0", (39.7, 46.0, 30.2), COCO + "naive"),
        ("1", (39.9, 45.9, 30.9), COCO + "table_8_stuff_stages_1"),
        ("2", (40.1, 46.0, 31.1), COCO + "table_8_stuff_stages_2"),
        ("3", (40.2, 46.1, 31.4), COCO + "table_8_stuff_stages_3"),
        ("4", (40.3, 46.2, 31.5), COCO + "table_8_stuff_stages_4"),
    ],
    "Table IX": [
        ("-", (40.3, 46.2, 31.4), COCO + "table_5_subnets"),
        ("+ reg-cls", (40.5, 46.6, 31.4), COCO + "table_9_reg_cls"),
        ("+ reg-stuff", (40.7, 46.3, 32.0), COCO + "table_9_reg_stuff"),
        ("+ reg-thing", (40.7, 46.4, 31.8), COCO + "table_9_reg_thing"),
        ("+ stuff-thing", (40.9, 46.8, 31.9), R50),
    ],
    "Table X": [
        ("-", (57.5, 53.6, 60.3), CITY + "table_6_subnets"),
        ("+ reg-cls", (58.0, 55.1, 60.1), CITY + "table_10_reg_cls"),
        ("+ reg-stuff", (58.3, 54.6, 60.9), CITY + "table_10_reg_stuff"),
        ("+ reg-thing", (58.5, 54.7, 61.3), CITY + "table_10_reg_thing"),
        ("+ stuff-thing", (58.6, 54.9, 61.4), "Cityscapes/spatialflow_R_50"),
    ],
    "Table XI": [
        ("PanopticFPN", (39.0,), OTHERS),
        ("UPSNet", (42.5,), OTHERS),
        ("DeeperLab", (34.3,), OTHERS),
        ("SpatialFlow 800", (40.9, 46.8, 31.9), R50),
        ("SpatialFlow 600", (40.3, 45.6, 32.2), R50 + "_600px"),
        ("SpatialFlow 400", (37.4, 41.5, 31.4), R50 + "_400px"),
    ],
    "Table XII": [
        ("RetinaNet", (35.6, 55.5, 37.7), COCO + "table_12_retinanet"),
        ("RetinaNet w/ flows", (36.7, 57.1, 39.4), COCO + "table_12_retinanet_flows"),
    ],
    "Fig. 4": [
        ("base model", (), COCO + "naive_600px"),
        ("cls flows model", (), COCO + "fig_4_cls_flows"),
        ("spatial flows model", (), R50 + "_600px"),
    ],
    "Report Table 1": [
        ("baseline", (39.7, 46.0, 30.2), COCO + "naive"),
        ("+ stuff + mask sub-net", (40.3, 46.2, 31.4), COCO + "table_5_subnets"),
        ("+ reg-cls flow", (40.5, 46.6, 31.4), COCO + "table_9_reg_cls"),
        ("+ reg-stuff flow", (40.7, 46.3, 32.0), COCO + "table_9_reg_stuff"),
        ("+ reg-mask flow", (40.7, 46.4, 31.8), COCO + "table_9_reg_thing"),
        ("+ stuff-mask flow", (40.9, 46.8, 31.9), R50),
    ],
    "Report Table 2": [
        ("SpatialFlow (with ResNet-50)", (40.9, 46.8, 31.9), R50),
        ("+ ResNet-101", (42.2, 48.2, 33.1), R101),
        ("+ DCN + multi-scale", (46.9, 53.0, 37.6), DCN),
        (
            "+ ResNeXt-101 + SyncBN",
            (47.8, 53.8, 38.7),
            "COCO/spatialflow_X_101_64x4d_DCN_SyncBN_20e_ms_tta",
        ),
    ],
    "Report Table 3": [
        ("val", (49.7, 56.9, 38.9), "COCO/ensemble_report"),
        ("test-dev", (50.2, 57.4, 39.3), "COCO/ensemble_report"),
    ],
    "JSIS-Net Table 1": [
        ("Mapillary Vistas val", (17.6, 10.0, 27.5), "JSIS-Net/jsis_net_R_50_vistas"),
        ("COCO test-dev", (27.2, 29.6, 23.4), "JSIS-Net/jsis_net_R_50"),
        ("COCO val", (26.9, 29.3, 23.3), "JSIS-Net/jsis_net_R_50"),
    ],
    "JSIS-Net Table 3": [
        ("Joint training", (34.7, 8.4, 17.4), NO_MAP),
        ("Semantic segmentation only", (33.6, 15.0), NO_MAP),
        ("Instance segmentation only", (6.5, 15.0), NO_MAP),
    ],
}
TABLES = [table for table in ROWS if table != "Fig. 4"]
CONFIGS = {
    f"{table}: {row}": (f"{target}.yaml", numbers)
    for table, rows in ROWS.items()
    for row, numbers, target in rows
    if target not in (OTHERS, NO_MAP)
}


def test_configs_of_rows_exist():
    assert {config for config, _ in CONFIGS.values()} <= set(config_names())


def test_every_table_is_here():
    roman = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"]
    expected = {f"Table {n}" for n in roman} | {f"Report Table {n}" for n in (1, 2, 3)}
    # The others of JSIS-Net's paper are of weights of the loss and of the recall of the RPN.
    assert set(ROWS) == expected | {"Fig. 4", "JSIS-Net Table 1", "JSIS-Net Table 3"}
    assert all(ROWS.values())


def test_model_zoo_has_the_rows_with_their_configs_and_numbers():
    listed = {}
    for result in [*sum(PANOPTIC_RESULTS.values(), []), *DETECTION_RESULTS]:
        for source in result.sources:
            numbers = () if source.startswith("Fig") else result.published
            assert source not in listed
            listed[source] = (result.config, numbers)
    assert listed == CONFIGS


@pytest.mark.parametrize("table", TABLES)
def test_rows_are_those_of_the_paper(table):
    rows = [tuple(row) for row in PAPERS["tables"][table]]
    ours = [numbers for _, numbers, _ in ROWS[table]]
    assert [row[: len(n)] for row, n in zip(rows, ours, strict=True)] == ours


def test_rows_of_panoptic_fpn_are_those_of_its_paper():
    printed = {(d, b): tuple(numbers) for d, b, numbers in PAPERS["panoptic_fpn"]}
    ours = {}
    for result in PANOPTIC_RESULTS["Panoptic FPN"]:
        dataset = "Cityscapes" if "Cityscapes" in result.config else "COCO"
        depth = re.search(r"R_(\d+)", result.config)[1]
        if "val" in result.split:
            ours[dataset, f"R{depth}-FPN"] = result.published
    assert ours == printed and len(printed) == 4
