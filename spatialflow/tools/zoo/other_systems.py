"""Results of the other systems, from their own papers and mmdetection's README."""

from __future__ import annotations

from .result import (
    CITYSCAPES_VAL,
    COCO_TEST,
    COCO_VAL,
    VISTAS_VAL,
    Metrics,
    Result,
)

JSIS_NET = [
    Result(f"JSIS-Net/{name}.yaml", split, published, (f"JSIS-Net Table 1: {row}",))
    for name, split, published, row in (
        ("jsis_net_R_50", COCO_VAL, (26.9, 29.3, 23.3), "COCO val"),
        ("jsis_net_R_50", COCO_TEST, (27.2, 29.6, 23.4), "COCO test-dev"),
        ("jsis_net_R_50_vistas", VISTAS_VAL, (17.6, 10.0, 27.5), "Mapillary Vistas val"),
    )
]

PANOPTIC_FPN = [
    Result(f"panoptic_fpn/{name}.yaml", split, published, note=f"Panoptic FPN, {table}")
    for name, split, published, table in (
        ("panoptic_fpn_R_50", COCO_VAL, (39.0, 45.9, 28.7), "Table 3a"),
        ("panoptic_fpn_R_101", COCO_VAL, (40.3, 47.5, 29.5), "Table 3b"),
        ("panoptic_fpn_R_101", COCO_TEST, (40.9, 48.3, 29.7), "Table 4a"),
        ("Cityscapes/panoptic_fpn_R_50", CITYSCAPES_VAL, (57.7, 51.6, 62.2), "Table 3a"),
        ("Cityscapes/panoptic_fpn_R_101", CITYSCAPES_VAL, (58.1, 52.0, 62.5), "Table 3b"),
    )
]


def _spinet(name: str, published: Metrics | None, row: str, split: str = CITYSCAPES_VAL) -> Result:
    return Result(f"SPINet/{name}.yaml", split, published, note=f"SPINet, {row}")


SPINET = [
    _spinet("spinet_R_50", (42.2, 49.3, 31.4), "Tables 1, 4", COCO_VAL),
    _spinet("spinet_R_50_DCN", (43.0, 49.3, 33.5), "Table 1", COCO_VAL),
    _spinet("spinet_R_50_Cityscapes", (63.0, 57.0, 67.3), "Tables 1, 2, 3, 5"),
    _spinet("spinet_R_50_DCN_Cityscapes", (63.5, 57.4, 67.9), "Table 1"),
    _spinet("ablations/table_3_none", (61.8, 54.8, 66.8), "Table 3: none"),
    _spinet("ablations/table_3_dice", (62.3, 56.0, 66.8), "Table 3: M.C.D"),
    _spinet("ablations/table_3_dice_inter", (62.7, 56.2, 67.4), "Table 3: M.C.D, inter"),
    _spinet("ablations/table_3_inter_intra", (62.3, 55.9, 66.9), "Table 3: inter, intra"),
    _spinet("ablations/table_4_P3_to_P7", (40.5, 48.3, 28.6), "Table 4: P3-7, P3-7", COCO_VAL),
    _spinet("ablations/table_5_two_features", None, "Table 5: not integrated, PQ 62.3"),
]

_MMDETECTION = "README of mmdetection 2"
HTC = [
    Result("HTC/htc_R_50_20e.yaml", COCO_VAL, (43.3, 38.3), note=_MMDETECTION),
    Result("HTC/htc_R_101_20e.yaml", COCO_VAL, (44.8, 39.6), note=_MMDETECTION),
    Result("HTC/htc_X_101_64x4d_20e.yaml", COCO_VAL, (47.0, 41.4), note=_MMDETECTION),
    Result(
        "HTC/htc_X_101_64x4d_DCN_20e_ms.yaml",
        COCO_VAL,
        (50.4, 43.8),
        note=f"{_MMDETECTION}; 50.7 / 43.9 in version 1, the report's",
    ),
]
"""Models of things with masks, without stuff."""
