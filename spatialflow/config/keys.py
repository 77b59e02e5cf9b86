"""Every configuration key of SpatialFlow, and how a config file is read.

The keys add to Detectron2's own. Where Detectron2 has a key for something, that key is used:
``MODEL.RETINANET.*`` for detection (its ``NORM`` follows the convolutions of all sub-networks),
``MODEL.ROI_MASK_HEAD.*`` for the masks of things, ``MODEL.SEM_SEG_HEAD.*`` for stuff (its
``LOSS_WEIGHT`` is the paper's lambda, eq. 6) and ``MODEL.PANOPTIC_FPN.COMBINE.*`` for the
thresholds of the merge.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN

from .systems import (
    add_backbone_config,
    add_htc_config,
    add_jsis_net_config,
    add_spinet_config,
)


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
    # 3x3 convolution, "PointwiseFlow" one of 1x1, "AttentionFlow" cross-attention of linear cost.
    cfg.MODEL.SPATIALFLOW.FLOW_TYPE = "ConvFlow"
    # Levels that things and stuff see: P3 to P5 (Sec. III-A), or P2 to P5. To P2 the flows bring
    # what reg and cls found on P3; MODEL.FPN.IN_FEATURES needs "res2" then.
    cfg.MODEL.SPATIALFLOW.SEGMENTATION_FEATURES = ["p3", "p4", "p5"]
    # How the detector learns: "RetinaNet", as in the papers, or "GFL", ATSS and the quality focal
    # loss (modeling/gfl.py), for one anchor a cell; both have the same heads.
    cfg.MODEL.SPATIALFLOW.DETECTOR = "RetinaNet"
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
    # Share of an image's labelled pixels, those with the largest loss, that the stuff head learns
    # from, as in Detectron2's DeepLab (there 0.2); 1: all, as in the papers.
    cfg.MODEL.SEM_SEG_HEAD.LOSS_TOP_K = 1.0
    # Fill unassigned pixels with the detected boxes (Sec. IV-B, "overlap ... 0.6"). A box fills
    # when at least MIN_FREE of it is free; the authors' code has 0.5.
    cfg.MODEL.SPATIALFLOW.BOX_FILL = CN({"ENABLED": True, "MIN_FREE": 0.6})
    # Before that, fill what is left around a thing: a pixel goes to the thing on the map whose mask
    # is the most probable there, if that is at least MIN_PROB. Not in the papers.
    cfg.MODEL.SPATIALFLOW.RIM_FILL = CN({"ENABLED": False, "MIN_PROB": 0.35})

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

    add_backbone_config(cfg)
    add_jsis_net_config(cfg)
    add_spinet_config(cfg)
    add_htc_config(cfg)

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
    # Factor of the learning rate of the flows. Below 1 for AdamW: its first steps move the weights
    # of a flow in one direction, and the features that they add up, behind a ReLU, are positive.
    cfg.SOLVER.FLOW_MULTIPLIER = 1.0
    # Each layer of a timm backbone has this factor times the learning rate of the layer above it;
    # 0.65 to 0.9 are common for transformers.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Decay of a moving average of the weights, such as 0.998, which evaluation and checkpoints
    # take; 0: none. A checkpoint holds the weights themselves, too, for resuming.
    cfg.SOLVER.EMA_DECAY = 0.0
    # Each batch goes through the model in this many parts, whose gradients add up: the memory of a
    # part, the step of the batch.
    cfg.SOLVER.BATCH_PARTS = 1
    # Train in the memory layout channels-last, in which convolutions are faster on most devices;
    # losses change by rounding.
    cfg.SOLVER.CHANNELS_LAST = False
    # What SOLVER.AMP.ENABLED computes in: "float16", whose losses are scaled, or "bfloat16", which
    # needs no scaling.
    cfg.SOLVER.AMP.PRECISION = "float16"
    # How many of the checkpoints of every CHECKPOINT_PERIOD to keep; 0, as in Detectron2: all.
    # model_best.pth and model_final.pth are always kept.
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 0
    # The total batch size that BASE_LR and the schedule were chosen for. Training refuses to start
    # with another IMS_PER_BATCH until the schedule and this key are set to match.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = cfg.SOLVER.IMS_PER_BATCH
