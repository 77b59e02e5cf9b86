"""What each config is listed with: its published results, split and sources."""

from __future__ import annotations

from . import other_systems
from .result import CITYSCAPES_VAL, COCO_TEST, COCO_VAL, MULTI_SCALE, Metrics, Result

ENSEMBLE = "with mmdetection's HTC weights, converted"
FOR_TTA = "trains the weights of the next"

_MAIN = [
    Result(
        "COCO/spatialflow_R_50_20e.yaml",
        COCO_VAL,
        (40.9, 46.8, 31.9),
        (
            "Table V: sub-nets, flows",
            "Table IX: + stuff-thing",
            "Table XI: SpatialFlow 800",
            "Report Table 1: + stuff-mask flow",
            "Report Table 2: SpatialFlow (with ResNet-50)",
        ),
    ),
    Result(
        "COCO/spatialflow_R_50_20e_600px.yaml",
        COCO_VAL,
        (40.3, 45.6, 32.2),
        ("Table XI: SpatialFlow 600", "Fig. 4: spatial flows model"),
    ),
    Result(
        "COCO/spatialflow_R_50_20e_400px.yaml",
        COCO_VAL,
        (37.4, 41.5, 31.4),
        ("Table XI: SpatialFlow 400",),
    ),
    Result(
        "COCO/spatialflow_R_101_20e.yaml",
        COCO_VAL,
        (42.2, 48.2, 33.1),
        ("Report Table 2: + ResNet-101",),
    ),
    Result(
        "COCO/spatialflow_R_101_20e.yaml",
        COCO_TEST,
        (42.9, 49.5, 33.0),
        ("Table I: SpatialFlow",),
    ),
    Result("COCO/spatialflow_R_101_DCN_20e_ms.yaml", COCO_VAL, note=FOR_TTA),
    Result(
        "COCO/spatialflow_R_101_DCN_20e_ms_tta.yaml",
        COCO_VAL,
        (46.9, 53.0, 37.6),
        ("Report Table 2: + DCN + multi-scale",),
        note=MULTI_SCALE,
    ),
    Result(
        "COCO/spatialflow_R_101_DCN_20e_ms_tta.yaml",
        COCO_TEST,
        (47.9, 54.5, 38.0),
        ("Table II: SpatialFlow",),
        note=MULTI_SCALE,
    ),
    Result("COCO/spatialflow_X_101_64x4d_DCN_SyncBN_20e_ms.yaml", COCO_VAL, note=FOR_TTA),
    Result(
        "COCO/spatialflow_X_101_64x4d_DCN_SyncBN_20e_ms_tta.yaml",
        COCO_VAL,
        (47.8, 53.8, 38.7),
        ("Report Table 2: + ResNeXt-101 + SyncBN",),
        note=MULTI_SCALE,
    ),
    Result(
        "COCO/ensemble_report.yaml",
        COCO_VAL,
        (49.7, 56.9, 38.9),
        ("Report Table 3: val",),
        note=ENSEMBLE,
    ),
    Result(
        "COCO/ensemble_report.yaml",
        COCO_TEST,
        (50.2, 57.4, 39.3),
        ("Report Table 3: test-dev",),
        note=ENSEMBLE,
    ),
    Result(
        "COCO/spatialflow_R_101_stuff_DCN_20e.yaml",
        COCO_VAL,
        note="for step 1 on Cityscapes",
    ),
    Result(
        "Cityscapes/spatialflow_R_50.yaml",
        CITYSCAPES_VAL,
        (58.6, 54.9, 61.4),
        ("Table VI: sub-nets, flows", "Table X: + stuff-thing"),
    ),
    Result(
        "Cityscapes/spatialflow_R_101.yaml",
        CITYSCAPES_VAL,
        (59.6, 55.0, 63.1),
        ("Table III: SpatialFlow-R101",),
    ),
    Result(
        "Cityscapes/spatialflow_R_101_COCO_step_1.yaml",
        CITYSCAPES_VAL,
        note="for step 2",
    ),
    Result("Cityscapes/spatialflow_R_101_COCO_step_2.yaml", CITYSCAPES_VAL, note=FOR_TTA),
    Result(
        "Cityscapes/spatialflow_R_101_COCO_step_2_tta.yaml",
        CITYSCAPES_VAL,
        (62.5, 56.6, 66.8),
        ("Table III: SpatialFlow-R101-COCO-M",),
        note=MULTI_SCALE,
    ),
]


def _ablation(
    name: str, published: Metrics | None, *sources: str, split: str = COCO_VAL, note: str = ""
) -> Result:
    folder = "Cityscapes" if split == CITYSCAPES_VAL else "COCO"
    return Result(f"{folder}/ablations/{name}.yaml", split, published, sources, note=note)


_COCO_ABLATIONS = [
    _ablation(
        "naive",
        (39.7, 46.0, 30.2),
        "Table V: neither",
        "Table VII: 0",
        "Table VIII: 0",
        "Report Table 1: baseline",
    ),
    _ablation("table_4_lambda_1.0", (37.5, 41.8, 30.9), "Table IV: 1.0"),
    _ablation("table_4_lambda_0.75", (38.2, 43.0, 31.1), "Table IV: 0.75"),
    _ablation("table_4_lambda_0.5", (38.8, 44.0, 31.0), "Table IV: 0.5"),
    _ablation("table_4_lambda_0.3", (39.1, 44.5, 30.9), "Table IV: 0.3"),
    _ablation("naive_600px", (39.3, 45.1, 30.5), "Table IV: 0.25", "Fig. 4: base model"),
    _ablation("table_4_lambda_0.2", (39.0, 44.9, 30.0), "Table IV: 0.2"),
    _ablation(
        "table_5_subnets",
        (40.3, 46.2, 31.4),
        "Table V: sub-nets",
        "Table IX: -",
        "Report Table 1: + stuff + mask sub-net",
    ),
    _ablation("table_5_flows", (40.2, 46.5, 30.7), "Table V: flows"),
    _ablation("table_7_thing_stages_1", (39.9, 46.3, 30.3), "Table VII: 1"),
    _ablation("table_7_thing_stages_2", (39.7, 46.0, 30.2), "Table VII: 2"),
    _ablation("table_7_thing_stages_3", (39.9, 46.2, 30.3), "Table VII: 3"),
    _ablation("table_7_thing_stages_4", (39.7, 45.9, 30.3), "Table VII: 4"),
    _ablation("table_8_stuff_stages_1", (39.9, 45.9, 30.9), "Table VIII: 1"),
    _ablation("table_8_stuff_stages_2", (40.1, 46.0, 31.1), "Table VIII: 2"),
    _ablation("table_8_stuff_stages_3", (40.2, 46.1, 31.4), "Table VIII: 3"),
    _ablation("table_8_stuff_stages_4", (40.3, 46.2, 31.5), "Table VIII: 4"),
    _ablation(
        "table_9_reg_cls",
        (40.5, 46.6, 31.4),
        "Table IX: + reg-cls",
        "Report Table 1: + reg-cls flow",
    ),
    _ablation(
        "table_9_reg_stuff",
        (40.7, 46.3, 32.0),
        "Table IX: + reg-stuff",
        "Report Table 1: + reg-stuff flow",
    ),
    _ablation(
        "table_9_reg_thing",
        (40.7, 46.4, 31.8),
        "Table IX: + reg-thing",
        "Report Table 1: + reg-mask flow",
    ),
    _ablation(
        "fig_4_cls_flows",
        None,
        "Fig. 4: cls flows model",
        note="0.7, 0.8 and 0.5 below the model with flows from reg",
    ),
]

_CITYSCAPES_ABLATIONS = [
    _ablation(name, published, *sources, split=CITYSCAPES_VAL)
    for name, published, *sources in (
        ("naive", (57.3, 53.5, 60.0), "Table VI: neither"),
        ("table_6_subnets", (57.5, 53.6, 60.3), "Table VI: sub-nets", "Table X: -"),
        ("table_6_flows", (58.0, 54.3, 60.8), "Table VI: flows"),
        ("table_10_reg_cls", (58.0, 55.1, 60.1), "Table X: + reg-cls"),
        ("table_10_reg_stuff", (58.3, 54.6, 60.9), "Table X: + reg-stuff"),
        ("table_10_reg_thing", (58.5, 54.7, 61.3), "Table X: + reg-thing"),
    )
]

_README = "README of the authors' code"
_RELEASED = [
    Result("released/spatialflow_R_50_20e.yaml", COCO_VAL, (41.8, 48.3, 31.9), note=_README),
    Result("released/spatialflow_R_101_20e.yaml", COCO_VAL, (43.4, 50.4, 32.8), note=_README),
    Result(
        "released/spatialflow_R_101_DCN_multiscale_20e.yaml", COCO_VAL, note="as the next, plain"
    ),
    Result(
        "released/spatialflow_R_101_DCN_multiscale_20e_tta.yaml",
        COCO_VAL,
        (48.0, 55.0, 37.6),
        note=f"{_README}, {MULTI_SCALE}",
    ),
    Result(
        "released/spatialflow_R_101_DCN_multiscale_20e_tta.yaml",
        COCO_TEST,
        (48.5, 55.5, 37.9),
        note=f"{_README}, {MULTI_SCALE}",
    ),
]

_FROM_RETINANET = [
    Result(
        "COCO/spatialflow_R_50_from_retinanet.yaml",
        COCO_VAL,
        note="starts with the boxes of a RetinaNet that Detectron2's zoo lists at 38.7 box AP",
    ),
    Result(
        "COCO/spatialflow_R_101_from_retinanet.yaml",
        COCO_VAL,
        note="the same, of one listed at 40.4 box AP",
    ),
    Result("own_data/spatialflow_R_50_from_retinanet.yaml", "yours", note="to copy"),
    Result("own_data/spatialflow_lite0.yaml", "yours", note="to copy; some hundreds of pictures"),
]

_OTHERS = [
    Result("panoptic_fpn/panoptic_fpn_R_50_20e.yaml", COCO_VAL),
    Result("HTC/htc_panoptic_R_50_20e.yaml", COCO_VAL),
    Result("camvid/spatialflow_R_18_small.yaml", "CamVid val"),
    Result("camvid/panoptic_fpn_R_18_small.yaml", "CamVid val"),
    Result("camvid/jsis_net_R_18_small.yaml", "CamVid val"),
    Result("camvid/spinet_R_18_small.yaml", "CamVid val"),
    Result("camvid/htc_R_18_small.yaml", "CamVid val"),
    Result("camvid/spatialflow_lite0_p2.yaml", "CamVid val"),
    Result("camvid/spatialflow_lite0_gfl_p2.yaml", "CamVid val"),
    Result("camvid/spatialflow_R_50_GN.yaml", "CamVid val"),
    Result("camvid/panoptic_fpn_R_50_GN.yaml", "CamVid val"),
    Result("toy/spatialflow_toy.yaml", "toy val"),
    Result("toy/spatialflow_toy_lite0.yaml", "toy val"),
    Result("toy/panoptic_fpn_toy.yaml", "toy val"),
    Result("toy/panoptic_fpn_toy_lite0.yaml", "toy val"),
    Result("toy/spatialflow_toy_lite0_gfl.yaml", "toy val"),
    Result("toy/spatialflow_toy_lite0_gfl_p2.yaml", "toy val"),
    Result("toy/jsis_net_toy.yaml", "toy val"),
    Result("toy/htc_toy.yaml", "toy val"),
    Result("toy/spinet_toy.yaml", "toy val"),
    Result("toy/spatialflow_toy_tta.yaml", "toy val", note=MULTI_SCALE),
    Result("toy/ensemble_toy.yaml", "toy val", note="SpatialFlow and Panoptic FPN together"),
    Result("toy/ablations/naive.yaml", "toy val"),
    Result("toy/ablations/table_5_subnets.yaml", "toy val"),
    Result("toy/ablations/table_5_flows.yaml", "toy val"),
]

_TIMM = [
    Result(f"{folder}/spatialflow_{backbone}{suffix}.yaml", split)
    for folder, suffix, split in (
        ("COCO", "_20e", COCO_VAL),
        ("Cityscapes", "", CITYSCAPES_VAL),
        ("camvid", "", "CamVid val"),
    )
    for backbone in ("convnext_tiny", "swin_tiny", "vit_small", "lite0")
] + [
    Result(f"camvid/{system}_lite0.yaml", "CamVid val")
    for system in ("panoptic_fpn", "jsis_net", "spinet", "htc")
]

PANOPTIC_RESULTS = {
    "COCO and Cityscapes": _MAIN,
    "The authors' released weights": _RELEASED,
    "From Detectron2's RetinaNet": _FROM_RETINANET,
    "Backbones of timm": _TIMM,
    "Ablations on COCO": _COCO_ABLATIONS,
    "Ablations on Cityscapes": _CITYSCAPES_ABLATIONS,
    "Panoptic FPN": other_systems.PANOPTIC_FPN,
    "JSIS-Net": other_systems.JSIS_NET,
    "SPINet": other_systems.SPINET,
    "Small data, and other models to compare with": _OTHERS,
}
"""Results by the heading they stand under."""

DETECTION_RESULTS = [
    _ablation("table_12_retinanet", (35.6, 55.5, 37.7), "Table XII: RetinaNet"),
    _ablation("table_12_retinanet_flows", (36.7, 57.1, 39.4), "Table XII: RetinaNet w/ flows"),
]
"""Detectors without segmentation."""

INSTANCE_RESULTS = other_systems.HTC
"""Models of things with masks, without stuff."""
