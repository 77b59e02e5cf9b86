"""``MODEL_ZOO.md`` from the configs and their results."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from spatialflow.model_zoo import get_config
from spatialflow.model_zoo.shipped import read_card, shipped_configs, shipped_weights

from .measured import numbers, of_config
from .result import Result
from .results import DETECTION_RESULTS, INSTANCE_RESULTS, PANOPTIC_RESULTS

_HEAD = """\
# Model zoo

Made by `make results` from the configs, `spatialflow/tools/zoo/results.py` (published numbers) and
`spatialflow/tools/zoo/measured.json`; change it there.

*Published* are the papers' numbers: tables and figures of the journal paper ("SpatialFlow: Bridging
All Tasks for Panoptic Segmentation", TCSVT 2020) and, as "Report", those of the COCO 2019 challenge
report; for the released weights they are from the README of the authors' code. The other systems'
are from their own papers. *Measured* are this project's, with the config as it is; "-" is not
measured. *Weights* are those that come with the project, with their licence: they are what was
measured there, and `get(..., trained=True)` has them. The code is under Apache 2.0; the licences of
the data are in [datasets/README.md](datasets/README.md). Training is iterations x batch size, at
the shorter side in pixels.

```python
from spatialflow import model_zoo

model_zoo.config_names()
cfg = model_zoo.get_config("COCO/spatialflow_R_50_20e.yaml")
```

The two-step recipe from COCO to Cityscapes is three runs, each starting from the weights of the one
before:

1. `COCO/spatialflow_R_101_stuff_DCN_20e.yaml`
2. `Cityscapes/spatialflow_R_101_COCO_step_1.yaml`
3. `Cityscapes/spatialflow_R_101_COCO_step_2.yaml`

## Other batch sizes

The papers train on 4 GPUs with 2 images each. For another total batch size scale the learning rate
with it and the iterations against it (the linear rule), which spares gradient accumulation.
`train_net.py` refuses a batch size that the schedule was not chosen for and prints the overrides
that follow from this rule. On COCO with one GPU and 2 images:

    python train_net.py --config-file configs/COCO/spatialflow_R_50_20e.yaml \\
      SOLVER.IMS_PER_BATCH 2 SOLVER.REFERENCE_IMS_PER_BATCH 2 SOLVER.BASE_LR 0.00125 \\
      SOLVER.MAX_ITER 1182880 SOLVER.STEPS "(946304, 1123736)" SOLVER.WARMUP_ITERS 2000
"""


def render() -> str:
    """The text of ``MODEL_ZOO.md``."""
    sections = [_HEAD]
    for heading, results in PANOPTIC_RESULTS.items():
        sections.append(f"## {heading}\n\n{_table(results, ('PQ', 'PQ Th', 'PQ St'))}\n")
    detection = _table(DETECTION_RESULTS, ("box AP", "AP50", "AP75"))
    instances = _table(INSTANCE_RESULTS, ("box AP", "mask AP"))
    sections.append(f"## Instance segmentation: Hybrid Task Cascade\n\n{instances}\n")
    sections.append(f"## Detection\n\n{detection}\n")
    return "\n".join(sections)


def _weights(config: str) -> str:
    return f"included: {read_card(shipped_weights(config)).licences['weights']}"


def describe_backbone(cfg: CfgNode) -> str:
    """A ResNet in the papers' short form, R-50 or X-101-64x4d-DCN-SyncBN, or timm's name.

    Frozen BN is not said.
    """
    if cfg.MODEL.TIMM.NAME:
        return cfg.MODEL.TIMM.NAME
    resnets = cfg.MODEL.RESNETS
    grouped = resnets.NUM_GROUPS > 1
    parts = ["X" if grouped else "R", str(resnets.DEPTH)]
    if grouped:
        parts.append(f"{resnets.NUM_GROUPS}x{resnets.WIDTH_PER_GROUP}d")
    if any(resnets.DEFORM_ON_PER_STAGE):
        parts.append("DCN")
    if resnets.NORM != "FrozenBN":
        parts.append(resnets.NORM)
    return "-".join(parts)


def describe_training(cfg: CfgNode) -> str:
    """Iterations, batch size, and shorter sides or the one size: 295,720 x 8, 800 px."""
    separator = " to " if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" else ", "
    sides = separator.join(map(str, cfg.INPUT.MIN_SIZE_TRAIN))
    sides = " x ".join(map(str, cfg.INPUT.FIXED_SIZE)) or sides
    crop = " x ".join(map(str, cfg.INPUT.CROP.SIZE))
    crop = f", crops of {crop}" if cfg.INPUT.CROP.ENABLED else ""
    return f"{cfg.SOLVER.MAX_ITER:,} x {cfg.SOLVER.IMS_PER_BATCH}, {sides} px{crop}"


def _table(results: Sequence[Result], metrics: tuple[str, ...]) -> str:
    published = f"published {' / '.join(metrics)}"
    headers = [
        "config",
        "backbone",
        "training",
        "split",
        published,
        "measured",
        "weights",
        "source",
    ]
    rows = [headers, ["---"] * len(headers)]
    shipped = shipped_configs()
    for result in results:
        cfg = get_config(result.config)
        source = "; ".join(result.sources)
        note = result.note
        rows.append(
            [
                f"[{result.config.removesuffix('.yaml')}](configs/{result.config})",
                describe_backbone(cfg),
                describe_training(cfg),
                result.split,
                numbers(result.published),
                numbers(of_config(result.config)),
                _weights(result.config) if result.config in shipped else "-",
                f"{source} ({note})" if source and note else source or note,
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
