"""A SpatialFlow and a Panoptic FPN small enough to train in tests, on a few toy scenes."""

from __future__ import annotations

from pathlib import Path

from spatialflow.config import config_dir, load_config
from spatialflow.data import prepare_datasets

CONFIG = config_dir() / "toy" / "spatialflow_toy.yaml"
FPN_CONFIG = CONFIG.with_name("panoptic_fpn_toy.yaml")


def tiny_overrides(datasets: Path, output: Path, max_iter: int = 4) -> list[str]:
    """Overrides of the toy configs, ``KEY VALUE ...``.

    The datasets get names of their own, because the builtin toy names belong to one folder.
    """
    entries = [
        [f"tiny_{split}", *(str(datasets / "toy" / p) for p in paths)]
        for split in ("train", "val")
        for paths in [(split, f"panoptic_{split}", f"panoptic_{split}.json")]
    ]
    values = {
        "DATASETS.REGISTER": entries,
        "DATASETS.TRAIN": ("tiny_train",),
        "DATASETS.TEST": ("tiny_val",),
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SPATIALFLOW.NUM_STAGES.CLS": 1,
        "MODEL.SPATIALFLOW.NUM_STAGES.REG": 1,
        "MODEL.SPATIALFLOW.NUM_STAGES.STUFF": 1,
        "MODEL.RETINANET.NORM": "",
        "MODEL.SPATIALFLOW.SUBNET_INIT": "normal",
        "MODEL.SPATIALFLOW.FLOW_INIT": "",
        "MODEL.RETINANET.PRIOR_PROB": 0.6,  # so that it finds things from the start
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 100,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        "TEST.DETECTIONS_PER_IMAGE": 20,
        # A schedule that does not depend on MAX_ITER, and an optimizer that does not blow up the
        # last digit of a gradient.
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.BASE_LR": 0.001,
        "SOLVER.CHANNELS_LAST": False,  # evaluation alone has not that layout, and rounds otherwise
        "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.REFERENCE_IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": max_iter,
        "SOLVER.STEPS": (3,),
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "SEED": 7,
        "OUTPUT_DIR": str(output),
    }
    return [text for key, value in values.items() for text in (key, str(value))]


def tiny_config(datasets: Path, output: Path, max_iter: int = 4, overrides=(), config=CONFIG):
    """The config with its datasets registered, frozen."""
    opts = [*tiny_overrides(datasets, output, max_iter), *map(str, overrides)]
    cfg = load_config(str(config), opts)
    prepare_datasets(cfg)
    cfg.freeze()
    return cfg
