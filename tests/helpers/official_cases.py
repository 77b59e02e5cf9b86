"""This project's modules and inputs at the sizes of the recordings of the authors' code."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from golden import (
    anchor_order,
    converted,
    flat_per_anchor,
    label_order,
    per_anchor,
    recording,
    scales_and_ratios,
)
from torch import Tensor, nn

from spatialflow import Predictor
from spatialflow.checkpoint.official import convert_state_dict
from spatialflow.data.categories import VOID_LABEL
from spatialflow.model_zoo import get_config
from spatialflow.modeling.detection import AnchorTargets, DensePredictions, Detector
from spatialflow.modeling.focal_loss import IGNORED
from spatialflow.modeling.mask_head import ThingHead
from spatialflow.modeling.stuff_head import StuffHead
from spatialflow.modeling.subnets import SubnetFeatures, Subnetworks

RELEASED = "released/spatialflow_R_50_20e.yaml"
FLOWS = ("reg_cls", "reg_stuff", "reg_thing", "stuff_thing")


def build_subnets(config: dict) -> Subnetworks:
    stages = {"cls": "convs", "reg": "convs", "stuff": "stuff_convs", "thing": "mask_convs"}
    deformable = {"cls": "cls", "stuff": "stuff", "thing": "mask"}
    return Subnetworks(
        config["feat_channels"],
        num_stages={task: config[f"stacked_{name}"] for task, name in stages.items()},
        flows=FLOWS,
        deform_on=[task for task, name in deformable.items() if config[f"dcn_{name}_convs_idx"]],
    )


def build_detector(channels: int, num_classes: int) -> Detector:
    config = recording("boxes").config
    scales, _ = scales_and_ratios()
    base = config["octave_base_scale"]
    sizes = [[base * s * 2 ** (i / scales) for i in range(scales)] for s in config["strides"]]
    focal = recording("losses").config["focal"]
    assigner = recording("losses").config["assigner"]
    return Detector(
        channels=channels,
        num_classes=num_classes,
        anchor_generator=DefaultAnchorGenerator(
            sizes=sizes,
            aspect_ratios=[config["ratios_h_over_w"]],
            strides=config["strides"],
            offset=config["center_offset"],
        ),
        anchor_matcher=Matcher(
            [assigner["neg"], assigner["pos"]], [0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=Box2BoxTransform(
            (1.0, 1.0, 1.0, 1.0), scale_clamp=-math.log(config["wh_ratio_clip"])
        ),
        focal_loss_alpha=focal["alpha"],
        focal_loss_gamma=focal["gamma"],
        score_thresh=config["score_thr"],
        topk_candidates=config["nms_pre_per_level"],
        nms_thresh=config["nms_iou"],
        max_detections=config["max_per_img"],
    )


def build_stuff_head(config: dict, loss_weight: float = 1.0) -> StuffHead:
    shapes = {
        f"p{int(math.log2(s))}": ShapeSpec(channels=config["in_channels"], stride=s)
        for s in config["feat_strides"]
    }
    return StuffHead(
        shapes,
        num_classes=config["stuff_num_classes"],
        conv_dims=config["feat_channels"],
        common_stride=config["out_stride"],
        loss_weight=loss_weight,
        norm=lambda channels: nn.GroupNorm(config["gn_groups"], channels),
        ignore_value=VOID_LABEL,
        align_corners=config["align_corners"],
        resize="nearest",
    )


def build_thing_head(
    channels: int, num_classes: int = 1, num_convs: int = 0, conv_channels: int = 1
) -> ThingHead:
    config = recording("roi_levels").config
    cfg = get_config(RELEASED)
    cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    head = cfg.MODEL.ROI_MASK_HEAD
    head.NUM_CONV, head.CONV_DIM = num_convs, conv_channels
    head.POOLER_RESOLUTION = config["output_size"]
    head.POOLER_SAMPLING_RATIO = config["sampling_ratio"]
    return ThingHead(
        cfg, {f"s{s}": ShapeSpec(channels=channels, stride=s) for s in config["strides"]}
    )


def reassigned(iou: Tensor, matched: Tensor, least: float = 0.0) -> Tensor:
    """Their low-quality matching: every ground truth takes the boxes that tie for its best IoU,
    if that is ``least``, also those that overlap another one more; the last ground truth wins.
    Detectron2 leaves such a box with the ground truth that it overlaps most.

    Args:
        iou: (G, R).
        matched: (R,), the ground truth of each box from Detectron2.
        least: the least IoU of a match of this kind.
    """
    matched = matched.clone()
    for g, best in enumerate(iou.amax(dim=1)):
        if best >= least:
            matched[iou[g] == best] = g
    return matched


class DetectionCase:
    """The recorded outputs and targets of detection, in this project's order."""

    def __init__(self):
        self.theirs = theirs = recording("losses")
        self.scores = theirs.numbered("det/cls_score")
        self.deltas = theirs.numbered("det/bbox_pred")
        self.num_classes = self.scores[0].shape[1] // len(anchor_order())
        self.detector = build_detector(1, self.num_classes)
        self.anchors = self.detector.anchor_generator(self.scores)
        self.level_sizes = [len(a) for a in self.anchors]
        labels = flat_levels(theirs.numbered("det/labels"))
        weights = flat_levels(theirs.numbered("det/label_weights"))
        self.labels = labels.masked_fill(weights == 0, IGNORED)
        self.box_targets = flat_levels(theirs.numbered("det/bbox_targets"))
        self.gt = [
            Instances(tuple(meta["img_shape"]), gt_boxes=Boxes(boxes), gt_classes=classes)
            for meta, boxes, classes in zip(
                theirs.manifest["det_metas"],
                theirs.numbered("det/gt_boxes"),
                theirs.numbered("det/gt_labels"),
                strict=True,
            )
        ]

    def label_anchors(self, gt: list[Instances]) -> AnchorTargets:
        no_crowds = [torch.zeros(g.image_size, dtype=torch.bool) for g in gt]
        sizes = [tuple(x.shape[-2:]) for x in self.scores]
        return self.detector.label_anchors(self.anchors, gt, no_crowds, sizes)

    def recorded_matches(self, n: int) -> tuple[Tensor, Tensor]:
        """The positive anchors of image n, and the ground truth that each was recorded with."""
        valid = self.theirs[f"det/valid_flags{n}"].nonzero()[:, 0]
        matched = torch.full((sum(self.level_sizes),), -1)
        positive = valid[self.theirs[f"det/pos_inds_among_valid{n}"]]
        matched[positive] = self.theirs[f"det/pos_assigned_gt{n}"]
        matched = flat_levels([x[None] for x in matched.split(self.level_sizes)])[0]
        positive = (matched >= 0).nonzero()[:, 0]
        return positive, matched[positive]

    def recorded_targets(self) -> AnchorTargets:
        """Labels as recorded; boxes of the recorded ground truth, its own anchor elsewhere."""
        boxes = []
        for n, gt in enumerate(self.gt):
            boxes_n = Boxes.cat(self.anchors).tensor.clone()
            positive, matched = self.recorded_matches(n)
            boxes_n[positive] = gt.gt_boxes.tensor[matched]
            boxes.append(boxes_n)
        return AnchorTargets(self.labels, boxes)

    def predictions(self) -> DensePredictions:
        return DensePredictions(
            [per_anchor(x) for x in self.scores], [per_anchor(x) for x in self.deltas]
        )

    def losses_per_level(self, targets: AnchorTargets, normalizer: int) -> dict[str, Tensor]:
        """Each of this project's losses level by level, over the normaliser of all levels."""
        labels = targets.labels.split(self.level_sizes, dim=1)
        boxes = zip(*(b.split(self.level_sizes) for b in targets.boxes), strict=True)
        rows: dict[str, list[Tensor]] = {"loss_cls": [], "loss_box_reg": []}
        for logits, deltas, anchors, labels_l, boxes_l in zip(
            *self.predictions(), self.anchors, labels, boxes, strict=True
        ):
            losses = self.detector.losses(
                DensePredictions([logits], [deltas]),
                [anchors],
                AnchorTargets(labels_l, list(boxes_l)),
            )
            own = self.count_positives(labels_l)
            for name, loss in losses.items():
                rows[name].append(loss * own / normalizer)
        return {name: torch.stack(row) for name, row in rows.items()}

    def count_positives(self, labels: Tensor) -> int:
        positive = (labels >= 0) & (labels < self.num_classes)
        return int(positive.sum(dim=1).clamp(min=1).sum())


def flat_levels(levels: list[Tensor]) -> Tensor:
    return torch.cat([flat_per_anchor(x) for x in levels], dim=1)


class MaskCase:
    """Recorded proposals and ground truth, and the head with the recorded weights."""

    def __init__(self):
        self.theirs = theirs = recording("losses")
        pred, features = theirs["mask/pred"], theirs["mask/roi_feats"]
        state = theirs.state("mask/head/", part="mask_head.")
        convs = [w for name, w in state.items() if ".convs." in name and name.endswith("weight")]
        self.head = build_thing_head(features.shape[1], pred.shape[1], len(convs), len(convs[0]))
        self.head.load_state_dict(converted(state, "thing_head."))
        self.gt = [
            Instances(
                tuple(masks.shape[-2:]),
                gt_boxes=Boxes(boxes),
                gt_classes=classes,
                gt_masks=BitMasks(masks.bool()),
            )
            for boxes, classes, masks in zip(
                theirs.numbered("det/gt_boxes"),
                theirs.numbered("det/gt_labels"),
                theirs.numbered("mask/gt_masks"),
                strict=True,
            )
        ]
        self.proposals = [
            Instances(gt.image_size, pred_boxes=Boxes(boxes))
            for gt, boxes in zip(self.gt, theirs.numbered("mask/proposals"), strict=True)
        ]

    def recorded_regions(self) -> list[Instances]:
        """The positive regions as recorded."""
        matched = self.theirs.numbered("mask/pos_assigned_gt")
        boxes = self.theirs.numbered("mask/pos_bboxes")
        return [
            Instances(
                gt.image_size,
                proposal_boxes=Boxes(boxes_n),
                gt_classes=gt.gt_classes[which],
                gt_masks=gt.gt_masks[which],
            )
            for gt, which, boxes_n in zip(self.gt, matched, boxes, strict=True)
        ]


class StuffLossCase:
    """Recorded scores and labels. The authors look at the rectangle of the first image only."""

    def __init__(self):
        self.theirs = theirs = recording("losses")
        self.scores, self.targets = theirs["stuff/score_maps"], theirs["stuff/target"][:, 0].long()
        height, width = theirs.manifest["stuff_metas"][0]["img_shape"]
        self.area = height * width
        self.inside = torch.full_like(self.targets, VOID_LABEL)
        self.inside[:, :height, :width] = self.targets[:, :height, :width]
        self.weight = get_config(RELEASED).MODEL.SEM_SEG_HEAD.LOSS_WEIGHT


class FullCase:
    """A detector at a recording's sizes with the converted weights, read from a checkpoint."""

    def __init__(self, name: str, folder: Path):
        self.theirs = recording(name)
        config, state = self.theirs.config, self.theirs.state()
        labels = config["stuff_num_classes"]
        other = labels // 2  # the recording has no 'other': any label will do
        self.label_order = torch.tensor(label_order(labels, other))
        self.cfg = self._config(config, state)
        file = folder / f"{name}.pth"
        torch.save({"model": convert_state_dict(state, other_label=other)}, file)
        self.predictor = Predictor(self.cfg, file)
        self.model = self.predictor.model

    def _config(self, config: dict, state: dict[str, Tensor]) -> CfgNode:
        released = "R_101_DCN_multiscale_20e" if config["dcn"] else "R_50_20e"
        cfg = get_config(f"released/spatialflow_{released}.yaml")
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = sorted(
            self.theirs.manifest["meta"]["img_scale"]
        )
        model, base = cfg.MODEL, config["base_channels"]
        model.DEVICE = str(torch.get_default_device())
        blocks = len({key.split(".")[2] for key in state if key.startswith("backbone.layer3.")})
        model.RESNETS.DEPTH = {6: 50, 23: 101, 36: 152}[blocks]
        model.RESNETS.STEM_OUT_CHANNELS = len(state["backbone.conv1.weight"])
        model.RESNETS.WIDTH_PER_GROUP, model.RESNETS.RES2_OUT_CHANNELS = base, 4 * base
        model.FPN.OUT_CHANNELS = config["fpn_channels"]
        model.RETINANET.NUM_CLASSES = config["num_classes"]
        model.SEM_SEG_HEAD.NUM_CLASSES = config["stuff_num_classes"]
        model.SEM_SEG_HEAD.CONVS_DIM = config["stuff_feat_channels"]
        model.ROI_MASK_HEAD.CONV_DIM = config["mask_conv_channels"]
        return cfg

    def their_category(self, segment: dict) -> int:
        """Their thing class or stuff label of a segment."""
        category = segment["category_id"]
        return category if segment["isthing"] else int(self.label_order[category])

    @torch.no_grad()
    def features(self) -> SubnetFeatures:
        """Of the recorded network input."""
        pyramid = self.model.backbone(self.theirs["in/tensor"])
        return self.model.subnets([pyramid[f"p{i}"] for i in range(3, 8)])


def training_batch(full: FullCase) -> list[dict]:
    """The recorded image and its mirror image, with the recorded ground truth."""
    theirs, model = full.theirs, full.model
    height, width = theirs.manifest["meta"]["img_shape"]
    image = theirs["in/tensor"][0, :, :height, :width]
    our_label = torch.full((256,), VOID_LABEL)
    our_label[full.label_order] = torch.arange(len(full.label_order))
    batch = []
    for n, normalised in enumerate([image, image.flip(2)]):
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(theirs[f"train/gt_boxes{n}"]),
            gt_classes=theirs["train/gt_labels"],
            gt_masks=BitMasks(theirs[f"train/gt_masks{n}"][:, :height, :width].bool()),
        )
        labels = theirs["train/gt_stuff"][n, 0, :height, :width].long()
        batch.append(
            {
                "image": normalised * model.pixel_std + model.pixel_mean,
                "instances": instances,
                "sem_seg": our_label[labels],
                "crowd_mask": torch.zeros(height, width, dtype=torch.bool),
            }
        )
    return batch


def with_reassigned_anchors(detector: Detector):
    """Its ``label_anchors`` with the authors' low-quality matching."""

    def label_anchors(anchors, gt_instances, crowd_masks, grid_sizes):
        targets = Detector.label_anchors(detector, anchors, gt_instances, crowd_masks, grid_sizes)
        for labels, boxes, gt in zip(targets.labels, targets.boxes, gt_instances, strict=True):
            positive = ((labels >= 0) & (labels < detector.num_classes)).nonzero()[:, 0]
            iou = pairwise_iou(gt.gt_boxes, Boxes.cat(anchors)[positive])
            matched = reassigned(iou, iou.argmax(dim=0))
            labels[positive] = gt.gt_classes[matched]
            boxes[positive] = gt.gt_boxes.tensor[matched]
        return targets

    return label_anchors
