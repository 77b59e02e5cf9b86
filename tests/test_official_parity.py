"""Equal results to the authors' released code, on recordings of it (see tests/golden.py).

Legend: N images, A = S scales x R ratios anchors a cell, K thing classes, L stuff labels. *Their
order* of anchors is ratio * S + scale, Detectron2's scale * R + ratio; their label of 'other' is
anywhere in 0..L-1, this project's is 0.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.solver import build_lr_scheduler
from detectron2.structures import Boxes, pairwise_iou
from golden import (
    anchor_order,
    available,
    converted,
    flat_per_anchor,
    label_order,
    manifests,
    per_anchor,
    recording,
)
from official_cases import (
    RELEASED,
    DetectionCase,
    FullCase,
    MaskCase,
    StuffLossCase,
    build_detector,
    build_stuff_head,
    build_subnets,
    build_thing_head,
    reassigned,
    training_batch,
    with_reassigned_anchors,
)
from torch import Tensor

from spatialflow import Predictor
from spatialflow.checkpoint.official import OTHER_CATEGORY_ID, other_label
from spatialflow.data import PanopticMapper
from spatialflow.data.categories import VOID_LABEL, Categories
from spatialflow.inference.ensemble import WeightedMean
from spatialflow.model_zoo import get_config
from spatialflow.modeling.deform_conv import ModulatedDeformConv
from spatialflow.modeling.detection import AnchorTargets, DensePredictions
from spatialflow.modeling.mask_head import mask_loss
from spatialflow.modeling.panoptic import merge_panoptic
from spatialflow.modeling.stuff_head import stuff_loss


@pytest.fixture(scope="module", autouse=True)
def _device():
    """SPATIALFLOW_PARITY_DEVICE compares on another device than the CPU, without TF32."""
    device = os.environ.get("SPATIALFLOW_PARITY_DEVICE", "cpu")
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    with torch.device(device):
        yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


def close(ours, theirs, atol=1e-4, rtol=0.0):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol, check_dtype=False)


def close_loss(ours, theirs):
    close(ours, theirs, atol=1e-7, rtol=1e-4)


def agree(ours: Tensor, theirs: Tensor, share: float = 0.999):
    assert ours.shape == theirs.shape
    assert (ours == theirs).double().mean() >= share


# Sub-networks


@torch.no_grad()
@pytest.mark.parametrize("name", available("head_plain", "head_dcn"))
def test_subnetworks_and_dense_heads(name):
    theirs = recording(name)
    config = theirs.config
    subnets = build_subnets(config)
    detector = build_detector(config["feat_channels"], config["num_classes"])
    state = theirs.state(part="bbox_head.")
    subnets.load_state_dict(converted(state, "subnets."))
    detector.load_state_dict(converted(state, "detector."))
    features = subnets(theirs.numbered("in/feat"))
    for ours, recorded in zip(features.stuff, theirs.numbered("out/stuff_feat"), strict=True):
        close(ours, recorded)
    for ours, recorded in zip(features.thing, theirs.numbered("out/mask_feat"), strict=True):
        close(ours, recorded)
    predictions = detector(features.cls, features.reg)
    for ours, recorded in zip(predictions.logits, theirs.numbered("out/cls_score"), strict=True):
        close(ours, per_anchor(recorded))
    for ours, recorded in zip(predictions.deltas, theirs.numbered("out/bbox_pred"), strict=True):
        close(ours, per_anchor(recorded))


@torch.no_grad()
def test_one_deformable_convolution():
    theirs = recording("head_dcn")
    weight, bias = theirs["unit/weight"], theirs["unit/bias"]
    conv = ModulatedDeformConv(weight.shape[1], weight.shape[0], weight.shape[2], padding=1)
    conv.load_state_dict({"weight": weight, "bias": bias})
    close(conv(theirs["unit/x"], theirs["unit/raw27"]).relu(), theirs["unit/y_after_relu"])


# Stuff head


@pytest.mark.recording("stuff_head")
@torch.no_grad()
def test_stuff_head():
    theirs = recording("stuff_head")
    config = theirs.config
    other = config["stuff_num_classes"] // 2  # the recording has no 'other': any label will do
    order = torch.tensor(label_order(config["stuff_num_classes"], other))
    head = build_stuff_head(config)
    head.load_state_dict(converted(theirs.state(part="stuff_head."), "stuff_head.", other))
    features = theirs.numbered("in/feat")
    for layers, x, recorded in zip(
        head.scale_heads, features, theirs.numbered("out/lateral"), strict=True
    ):
        close(layers(x), recorded)
    scores = head(features)
    close(scores, theirs["out/score_maps"][:, order])
    for n, meta in enumerate(theirs.manifest["single_metas"]):
        image_size, original = tuple(meta["img_shape"]), tuple(meta["ori_shape"])
        for size, name in ((image_size, ""), (original, "_at_original_size")):
            labels = head.postprocess(scores[n], image_size, size).argmax(dim=0)
            agree(order[labels], theirs[f"out/stuff_map{n}{name}"])


# Regions of interest


def test_levels_of_regions_and_roi_align():
    theirs = recording("roi_levels")
    features, rois = theirs.numbered("align/feat"), theirs["align/rois"]
    pooler = build_thing_head(features[0].shape[1]).mask_pooler

    def levels(boxes: Tensor) -> Tensor:
        return assign_boxes_to_levels(
            [Boxes(boxes)],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )

    assert torch.equal(levels(theirs["level/boxes"]), theirs["level/level"])
    assert torch.equal(levels(rois[:, 1:]), theirs["align/levels"])
    by_image = rois[:, 0].argsort(stable=True)
    images = range(len(features[0]))
    pooled = pooler(features, [Boxes(rois[rois[:, 0] == n, 1:]) for n in images])
    close(pooled, theirs["align/out"][by_image])


# Boxes


def test_anchors_are_bit_identical():
    theirs = recording("boxes")
    config, order = theirs.config, anchor_order()
    generator = build_detector(1, 1).anchor_generator
    for ours, base in zip(generator.cell_anchors, theirs.numbered("anchors/base"), strict=True):
        assert torch.equal(ours, base[order])
    grids = generator([torch.zeros(1, 1, *size) for size in config["grid_sizes"]])
    for ours, grid in zip(grids, theirs.numbered("anchors/grid"), strict=True):
        assert torch.equal(ours.tensor, flat_per_anchor(grid[None])[0])


def test_anchors_of_the_config_are_theirs():
    cfg, config = get_config(RELEASED), recording("boxes").config
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == len(config["strides"])
    ours = cfg.MODEL.ANCHOR_GENERATOR
    expected = build_detector(1, 1).anchor_generator
    generator = DefaultAnchorGenerator(
        sizes=ours.SIZES,
        aspect_ratios=ours.ASPECT_RATIOS,
        strides=config["strides"],
        offset=ours.OFFSET,
    )
    for a, b in zip(generator.cell_anchors, expected.cell_anchors, strict=True):
        assert torch.equal(a, b)


def test_boxes_from_deltas_and_deltas_from_boxes():
    theirs = recording("boxes")
    detector = build_detector(1, 1)
    anchors = theirs["delta/anchors"]
    decoded = detector.decode(theirs["delta/deltas"], anchors)
    close(decoded, theirs["delta/decoded_noclip"], rtol=1e-5)
    clipped = Boxes(decoded)
    clipped.clip(tuple(theirs.config["clip_shape_for_delta_decoded_clip"]))
    close(clipped.tensor, theirs["delta/decoded_clip"])
    close(
        detector.box2box_transform.get_deltas(anchors, theirs["delta/gt"]), theirs["delta/encoded"]
    )


@pytest.mark.parametrize("rescale", [0, 1])
def test_detections(rescale):
    theirs = recording("boxes")
    metas = theirs.manifest["metas"]
    detector = build_detector(1, theirs.config["num_classes"])
    scores = theirs.numbered("nms/cls_score")
    predictions = DensePredictions(
        [per_anchor(x) for x in scores],
        [per_anchor(x) for x in theirs.numbered("nms/bbox_pred")],
    )
    image_sizes = [tuple(meta["img_shape"]) for meta in metas]
    output_sizes = [tuple(meta["ori_shape"]) for meta in metas] if rescale else image_sizes
    found = detector.inference(
        predictions, detector.anchor_generator(scores), image_sizes, output_sizes
    )
    for n, ours in enumerate(found):
        dets = theirs[f"nms/rescale{rescale}_img{n}_dets"]
        # They keep boxes that clipping left without an area.
        nonempty = Boxes(dets[:, :4]).nonempty()
        close(ours.scores, dets[nonempty, 4], atol=1e-6)
        close(ours.pred_boxes.tensor, dets[nonempty, :4], atol=1e-3)
        labels = theirs[f"nms/rescale{rescale}_img{n}_labels"]
        assert torch.equal(ours.pred_classes, labels[nonempty])


# Detection losses


@pytest.fixture
def detection() -> DetectionCase:
    return DetectionCase()


def test_anchor_labels_but_for_reassigned_anchors(detection):
    ours = detection.label_anchors(detection.gt)
    all_anchors = Boxes.cat(detection.anchors)
    for n, gt in enumerate(detection.gt):
        positive, theirs = detection.recorded_matches(n)
        labels = ours.labels[n]
        is_positive = (labels >= 0) & (labels < detection.num_classes)
        assert torch.equal(is_positive.nonzero()[:, 0], positive)
        iou = pairwise_iou(gt.gt_boxes, all_anchors[positive])
        most = iou.argmax(dim=0)
        assert torch.equal(labels[positive], gt.gt_classes[most])
        assert torch.equal(reassigned(iou, most), theirs)
        same = most == theirs
        rest = torch.ones_like(labels, dtype=torch.bool)
        rest[positive[~same]] = False
        assert torch.equal(labels[rest], detection.labels[n][rest])
        targets = detection.detector.box2box_transform.get_deltas(
            all_anchors.tensor[positive[same]], ours.boxes[n][positive[same]]
        )
        close(targets, detection.box_targets[n][positive[same]])


def test_detection_losses(detection):
    theirs, targets = detection.theirs, detection.recorded_targets()
    normalizer = int(theirs["det/num_total_pos"])
    assert detection.count_positives(targets.labels) == normalizer
    per_level = detection.losses_per_level(targets, normalizer)
    close_loss(per_level["loss_cls"], theirs["det/loss_cls_per_level"])
    close_loss(per_level["loss_box_reg"], theirs["det/loss_bbox_per_level"])
    for x in [*detection.scores, *detection.deltas]:
        x.requires_grad_()
    losses = detection.detector.losses(detection.predictions(), detection.anchors, targets)
    sum(losses.values()).backward()
    close_loss(losses["loss_cls"], theirs["det/loss_cls_per_level"].sum())
    close_loss(losses["loss_box_reg"], theirs["det/loss_bbox_per_level"].sum())
    for x, recorded in zip(detection.scores, theirs.numbered("det/grad_cls"), strict=True):
        close(x.grad, recorded, atol=1e-6, rtol=1e-4)
    for x, recorded in zip(detection.deltas, theirs.numbered("det/grad_reg"), strict=True):
        close(x.grad, recorded, atol=1e-6, rtol=1e-4)


def test_detection_losses_with_an_image_without_things(detection):
    recorded = detection.recorded_targets()
    empty = detection.label_anchors([detection.gt[0], detection.gt[1][:0]])
    targets = AnchorTargets(
        torch.stack([recorded.labels[0], empty.labels[1]]), [recorded.boxes[0], empty.boxes[1]]
    )
    normalizer = int(detection.theirs["det_empty/num_total_pos"])
    assert detection.count_positives(targets.labels) == normalizer
    per_level = detection.losses_per_level(targets, normalizer)
    close_loss(per_level["loss_cls"], detection.theirs["det_empty/loss_cls_per_level"])
    close_loss(per_level["loss_box_reg"], detection.theirs["det_empty/loss_bbox_per_level"])


# Masks in training


@pytest.fixture
def masks() -> MaskCase:
    return MaskCase()


def test_regions_that_masks_are_trained_on(masks):
    least = masks.theirs.config["mask_assigner"]["min_pos"]
    for n, ours in enumerate(masks.head.sample(masks.proposals, masks.gt)):
        theirs, gt = masks.theirs[f"mask/pos_assigned_gt{n}"], masks.gt[n]
        assert torch.equal(ours.proposal_boxes.tensor, masks.theirs[f"mask/pos_bboxes{n}"])
        assert masks.theirs[f"mask/pos_is_gt{n}"].sum() == len(gt)
        iou = pairwise_iou(gt.gt_boxes, masks.proposals[n].pred_boxes)
        most, positive = iou.argmax(dim=0), iou.amax(dim=0) >= least
        own = torch.arange(len(gt))
        assert torch.equal(torch.cat([own, reassigned(iou, most, least)[positive]]), theirs)
        assert torch.equal(ours.gt_classes, gt.gt_classes[torch.cat([own, most[positive]])])


def test_mask_targets(masks):
    targets = [
        r.gt_masks.crop_and_resize(r.proposal_boxes.tensor, masks.theirs["mask/targets"].shape[-1])
        for r in masks.recorded_regions()
    ]
    assert torch.equal(torch.cat(targets), masks.theirs["mask/targets"].bool())


def test_mask_loss(masks):
    theirs = masks.theirs
    with torch.no_grad():
        close(masks.head.mask_head.layers(theirs["mask/roi_feats"]), theirs["mask/pred"])
    logits = theirs["mask/pred"].requires_grad_()
    classes = torch.cat([r.gt_classes for r in masks.recorded_regions()])
    assert torch.equal(classes, theirs["mask/labels"])
    loss = mask_loss(logits, classes, theirs["mask/targets"]) / len(logits)
    loss.backward()
    close_loss(loss, theirs["mask/loss"])
    close_loss(logits.grad, theirs["mask/grad_pred"])


# Stuff loss


def test_stuff_loss_with_their_normaliser():
    case = StuffLossCase()
    theirs, scores, batch = case.theirs, case.scores.requires_grad_(), len(case.scores)
    assert int(theirs["stuff/normaliser"]) == batch * case.area
    loss = case.weight * stuff_loss(scores, case.inside, VOID_LABEL) / (batch * case.area)
    close_loss(loss, theirs["stuff/loss_without_broadcast"])
    # Their product of (N, 1, H, W) weights and (N, H, W) losses counts every image N times.
    (batch * loss).backward()
    close_loss(batch * loss, theirs["stuff/loss"])
    close_loss(scores.grad, theirs["stuff/grad"])
    first = stuff_loss(scores[:1], case.inside[:1], VOID_LABEL)
    close_loss(case.weight * first / case.area, theirs["stuff/loss_batch1_image0"])


def test_stuff_loss_here_is_the_mean_over_labelled_pixels(monkeypatch):
    case = StuffLossCase()
    head = build_stuff_head(recording("stuff_head").config, loss_weight=case.weight)
    monkeypatch.setattr(head, "forward", lambda scores: scores)
    ours = head.losses(case.scores, case.targets)["loss_sem_seg"]
    close_loss(ours, case.theirs["stuff/loss_if_plain_mean_over_non_ignored"])
    assert abs(ours / case.theirs["stuff/loss"] - 1) > 0.01


# Merge


def same_up_to_numbering(ours: Tensor, theirs: Tensor) -> dict[int, int]:
    """Our number of each of their segments, after checking that the maps differ in nothing else."""
    assert ours.shape == theirs.shape
    pairs = torch.stack([theirs.flatten().long(), ours.flatten().long()]).unique(dim=1)
    numbers = {a: b for a, b in pairs.T.tolist()}
    assert len(numbers) == pairs.shape[1] == len(set(numbers.values()))
    assert numbers.pop(0, 0) == 0 and 0 not in numbers.values()
    return numbers


def merge_cases() -> list:
    cases = manifests().get("merge", {}).get("cases", [])
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.mark.parametrize("case", merge_cases())
def test_merge(case):
    theirs = recording("merge")
    name, other = case["name"], theirs.manifest["other_label"]
    thing_ids, stuff_ids = theirs.manifest["cat_ids"], theirs.manifest["seg_ids"]
    head = build_stuff_head(recording("stuff_head").config)
    size = (case["height"], case["width"])
    stuff_map = theirs[f"{name}/stuff_map"]
    stuff_map = head.postprocess(stuff_map[None], tuple(stuff_map.shape), size)[0]
    assert torch.equal(stuff_map, theirs[f"{name}/stuff_map_at_original_size"])
    without_pixels = 0
    for setting in theirs.manifest["settings"]:
        panoptic, segments = merge_panoptic(
            theirs[f"{name}/masks"],
            theirs[f"{name}/boxes_xyxy"],
            theirs[f"{name}/scores"],
            theirs[f"{name}/labels"],
            stuff_map.long(),
            num_stuff_labels=len(stuff_ids),
            thing_labels=[other],
            score_thresh=setting["confidence_thr"],
            overlap_thresh=setting["overlap_thr"],
            stuff_area_limit=setting["stuff_area_limit"],
            box_fill_min_free=setting["bbox_overlap_thr"] if setting["using_bbox"] else None,
        )
        numbers = same_up_to_numbering(panoptic, theirs[f"{name}/{setting['key']}/panoptic"])
        expected = case["expected"][setting["key"]]["segments"]
        described = {
            s["id"]: (
                (thing_ids if s["isthing"] else stuff_ids)[s["category_id"]],
                s["isthing"],
                s["area"],
            )
            for s in segments
        }
        assert described == {
            numbers[s["id"]]: (s["category_id"], bool(s["isthing"]), s["area"])
            for s in expected
            if s["area"]
        }
        without_pixels += sum(s["area"] == 0 for s in expected)
    # They list a segment for a box without an area, and their evaluation then fails on it.
    assert (without_pixels > 0) == case["quirk"]


# The whole detector


@pytest.fixture(scope="module", params=available("full_plain", "full_dcn"))
def full(request, tmp_path_factory) -> FullCase:
    return FullCase(request.param, tmp_path_factory.mktemp("weights"))


def test_full_input(full):
    image = full.theirs["in/image_bgr_uint8"].numpy()[:, :, ::-1]
    aug_input = T.AugInput(np.ascontiguousarray(image))
    PanopticMapper(full.cfg, is_train=False).augmentations(aug_input)
    image = torch.from_numpy(aug_input.image.transpose(2, 0, 1).copy())
    assert image.shape[1:] == torch.Size(full.theirs.manifest["meta"]["img_shape"])
    close(full.model.preprocess_image([{"image": image}]).tensor, full.theirs["in/tensor"])


@torch.no_grad()
def test_full_features(full):
    theirs, backbone = full.theirs, full.model.backbone
    stages = backbone.bottom_up(theirs["in/tensor"])
    pyramid = backbone(theirs["in/tensor"])
    for i in (3, 4, 5):
        close(stages[f"res{i}"], theirs[f"mid/C{i}"])
    for i in range(3, 8):
        close(pyramid[f"p{i}"], theirs[f"mid/P{i}"])


@torch.no_grad()
def test_full_heads(full):
    theirs, model, features = full.theirs, full.model, full.features()
    for ours, recorded in zip(features.stuff, theirs.numbered("mid/stuff_feat"), strict=True):
        close(ours, recorded)
    for ours, recorded in zip(features.thing, theirs.numbered("mid/mask_feat"), strict=True):
        close(ours, recorded)
    logits, deltas = model.detector(features.cls, features.reg)
    for ours, recorded in zip(logits, theirs.numbered("mid/cls_score"), strict=True):
        close(ours, per_anchor(recorded))
    for ours, recorded in zip(deltas, theirs.numbered("mid/bbox_pred"), strict=True):
        close(ours, per_anchor(recorded))
    head = model.stuff_head
    scores = head.layers(dict(zip(head.in_features, features.stuff, strict=True)))
    close(scores, theirs["mid/stuff_scores_stride4"][:, full.label_order])
    masks = model.thing_head(features.thing, [Boxes(theirs["mid/rois"][:, 1:])])
    classes = theirs["out/labels_by_score"]
    close(masks[torch.arange(len(masks)), classes], theirs["out/mask_logits_of_label"])


def assert_detections_are_those_of(part, theirs, ours):
    """Boxes, scores, classes and masks, recorded under ``part``."""
    dets, classes = theirs[f"{part}/dets_by_score"], theirs[f"{part}/labels_by_score"]
    masks = theirs[f"{part}/masks_by_score"]
    # They keep boxes that clipping left without an area.
    nonempty = Boxes(dets[:, :4]).nonempty().nonzero()[:, 0]
    assert len(ours) == len(nonempty)
    # Equal scores may stand in any order.
    distance = torch.cdist(ours.pred_boxes.tensor, dets[nonempty, :4], p=math.inf)
    distance[ours.pred_classes[:, None] != classes[nonempty]] = math.inf
    same = nonempty[distance.argmin(dim=1)]
    assert len(same.unique()) == len(same)
    close(ours.pred_boxes.tensor, dets[same, :4], atol=1e-2)
    close(ours.scores, dets[same, 4])
    intersection = (ours.pred_masks & masks[same]).sum(dim=(1, 2))
    union = (ours.pred_masks | masks[same]).sum(dim=(1, 2))
    assert (intersection >= 0.99 * union).all()


def test_full_output(full):
    """Detections, masks, stuff map and panoptic map from the picture itself."""
    theirs = full.theirs
    output = full.predictor(theirs["in/image_bgr_uint8"].numpy())
    assert_detections_are_those_of("out", theirs, output["instances"])
    dets, classes = theirs["out/dets_by_score"], theirs["out/labels_by_score"]
    masks, stuff_map = theirs["out/masks_by_score"], theirs["out/stuff_map_original"].long()
    agree(full.label_order[output["sem_seg"].argmax(dim=0)], stuff_map)

    # The recording has no panoptic map; merging is compared by test_merge.
    settings = replace(full.model.merge, thing_labels=[int(full.label_order[0])])
    expected, expected_segments = merge_panoptic(
        masks,
        dets[:, :4],
        dets[:, 4],
        classes,
        stuff_map,
        num_stuff_labels=len(full.label_order),
        **vars(settings),
    )
    panoptic, segments = output["panoptic_seg"]
    agree(panoptic, expected)
    assert [(s["isthing"], full.their_category(s)) for s in segments] == [
        (s["isthing"], s["category_id"]) for s in expected_segments
    ]


@pytest.mark.parametrize("full", ["full_plain"], indirect=True)
def test_full_output_of_many_views(full):
    """Two scales with flip: one NMS, mean masks, mean scores, from the picture itself."""
    theirs, cfg = full.theirs, full.predictor.cfg.clone()
    metas = theirs.manifest["aug_metas"]
    assert [meta["flip"] for meta in metas] == [False, True] * (len(metas) // 2)
    tta = get_config("released/spatialflow_R_101_DCN_multiscale_20e_tta.yaml")
    cfg.TEST.AUG = tta.TEST.AUG
    cfg.MODEL.SPATIALFLOW.STUFF_RESIZE = tta.MODEL.SPATIALFLOW.STUFF_RESIZE
    # Sizes as recorded: only the shorter side binds.
    cfg.TEST.AUG.SCALES = [[10 * min(m["img_shape"]), min(m["img_shape"])] for m in metas[::2]]
    predictor = Predictor(cfg)
    image = theirs["in/image_bgr_uint8"].numpy()
    (member,) = predictor.model.members
    shown = torch.from_numpy(image[:, :, ::-1].transpose(2, 0, 1).copy())
    seen = [x for b in member.batches(shown, predictor.model.device) for x in b.images.tensor]
    for view, number in zip(seen[::2], range(0, len(metas), 2), strict=True):
        close(view[None], theirs[f"aug/in{number}"])
    output = predictor(image)
    assert_detections_are_those_of("aug", theirs, output["instances"])
    labels = full.label_order[output["sem_seg"].argmax(dim=0)]
    agree(labels, theirs["aug/stuff_map_original"].long())


@pytest.mark.recording("stuff_head")
def test_stuff_scores_of_many_views():
    theirs = recording("stuff_head")
    head, mean = build_stuff_head(theirs.config), WeightedMean()
    head.resize = "bilinear"
    for n, meta in enumerate(theirs.manifest["aug_metas"]):
        scores = theirs[f"aug/score_maps{n}"][0]
        scores = head.postprocess(scores, tuple(meta["img_shape"]), tuple(meta["ori_shape"]))
        mean.add(scores.flip(-1) if meta["flip"] else scores, 1.0)
    agree(mean.value.argmax(dim=0), theirs["aug/out_stuff_map"].long())


@pytest.mark.parametrize("full", ["full_plain"], indirect=True)
def test_full_training_losses(full, monkeypatch):
    theirs, model, batch = full.theirs, full.model, training_batch(full)
    monkeypatch.setattr(model.detector, "label_anchors", with_reassigned_anchors(model.detector))
    regions = []
    sample = model.thing_head.sample
    monkeypatch.setattr(
        model.thing_head, "sample", lambda *args: regions.extend(sample(*args)) or regions
    )
    with torch.no_grad():
        ours = model.losses(batch)
    close_loss(ours["loss_cls"], theirs["train/loss_cls"].sum())
    close_loss(ours["loss_box_reg"], theirs["train/loss_bbox"].sum())
    rois = theirs["train/pos_rois"]
    for n, found in enumerate(regions):
        close(found.proposal_boxes.tensor, rois[rois[:, 0] == n, 1:], atol=1e-2)
    close_loss(ours["loss_mask"], theirs["train/loss_mask"])
    # N times the sum over all images by the pixels of one, labelled or not (both images are equal
    # in size, so that the first one's rectangle is the whole of each), for N times the mean.
    height, width = theirs.manifest["meta"]["img_shape"]
    labelled = sum((x["sem_seg"] != VOID_LABEL).sum() for x in batch)
    ours["loss_sem_seg"] *= labelled / (height * width)
    close_loss(ours["loss_sem_seg"], theirs["train/loss_stuff"])
    close_loss(sum(ours.values()), theirs["train/total"])


# Labels, sizes, schedule


def test_stuff_labels_are_theirs_with_other_at_0():
    theirs = recording("misc")
    ids = theirs["stuff_label_to_category_id"].tolist()
    things = theirs["thing_label_to_category_id"].tolist()
    stuff = [i for i in ids if i != OTHER_CATEGORY_ID]
    rows = [{"id": i, "name": str(i), "isthing": i in things} for i in [*stuff, *things]]
    categories = Categories.from_json(rows)
    assert [c.id for c in categories.things] == things
    other = other_label(stuff)
    order = label_order(len(ids), other)
    assert [ids[label] for label in order] == [OTHER_CATEGORY_ID, *sorted(stuff)]
    # Value of their PNGs, where things are rewritten to 'other', -> their label.
    for value, label in enumerate(theirs["seg_png_value_to_train_label"].tolist()):
        ours = categories.segment_classes.get(value)
        expected = VOID_LABEL if ours is None or ours.isthing else order[ours.stuff_label]
        assert label == (other if value == OTHER_CATEGORY_ID else expected)


def test_sizes_after_resizing():
    table = recording("misc")["rescale/w_h_long_short_neww_newh"].tolist()
    for width, height, longer, shorter, new_width, new_height in table:
        size = T.ResizeShortestEdge.get_output_shape(height, width, shorter, longer)
        assert size == (new_height, new_width)


def test_training_input():
    theirs = recording("misc")
    setting, cfg = theirs.manifest["train_pipeline"], get_config(RELEASED)
    shorter, longer = sorted(setting["img_scale"])
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (shorter,), longer
    resize, _ = PanopticMapper(cfg, is_train=True).augmentations.augs
    image = theirs["pipe/in_image_bgr"].numpy()[:, :, ::-1]
    height, width = setting["img_shape"]
    transforms = [resize.get_transform(image)] + setting["flip"] * [T.HFlipTransform(width)]
    transforms = T.TransformList(transforms)
    normalised = transforms.apply_image(image) - np.array(cfg.MODEL.PIXEL_MEAN)
    normalised = torch.from_numpy(normalised / cfg.MODEL.PIXEL_STD)
    close(normalised, theirs["pipe/out_image"][:height, :width])
    labels = theirs["seg_png_value_to_train_label"].numpy()[theirs["pipe/in_seg_png"].numpy()]
    labels = torch.from_numpy(transforms.apply_segmentation(labels).copy())
    assert torch.equal(labels, theirs["pipe/out_seg"][:height, :width])
    for mask, recorded in zip(theirs["pipe/in_masks"], theirs["pipe/out_masks"], strict=True):
        ours = torch.from_numpy(transforms.apply_segmentation(mask.numpy()).copy())
        assert torch.equal(ours, recorded[:height, :width])


def test_learning_rate():
    theirs = recording("misc")
    lr, setting = theirs["lr/per_iter"], theirs.manifest["lr"]
    cfg = get_config(RELEASED)
    epoch = setting["iters_per_epoch_in_fixture"]
    cfg.SOLVER.STEPS = [e * epoch for e in setting["steps_epochs"]]
    cfg.SOLVER.MAX_ITER = len(lr)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    ours = []
    for _ in range(len(lr)):
        ours.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    close(torch.tensor(ours, dtype=torch.float64), lr, atol=1e-12, rtol=1e-9)
