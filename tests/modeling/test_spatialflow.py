"""The whole model: inputs to losses, inputs to results, and every switch between."""

import copy
from dataclasses import replace

import pytest
import torch
from builders import STUFF_LABELS, THINGS, make_input, tiny_model
from detectron2.data import Metadata
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.visualizer import Visualizer

from spatialflow.config import config_dir, load_config
from spatialflow.modeling.panoptic import HeuristicMerge

LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg"}
BOXES = [(8, 8, 40, 40), (50, 10, 90, 60)]
BRANCHES = {
    "all": {},
    "stuff off": {"stuff": False},
    "thing off": {"things": False},
    "both off": {"stuff": False, "things": False},
}

hard_images = pytest.mark.parametrize(
    "image",
    [
        make_input(),
        make_input(crowds=[(0, 0, 64, 64), (3, 3, 9, 9)]),
        make_input(stuff=255),
        make_input(boxes=[(95, 63, 96, 64)]),
        make_input(boxes=[(0, 0, 96, 64)]),
        make_input((1, 1), boxes=[(0, 0, 1, 1)]),
        make_input((33, 7)),
    ],
    ids=["no things", "only crowds", "only void", "one pixel", "all of it", "1x1", "33x7"],
)


def sure_of_something(model):
    """The model with detections and segments to show for itself, though it never learnt."""
    torch.nn.init.normal_(model.detector.cls_score.weight, std=0.5)
    torch.nn.init.zeros_(model.detector.cls_score.bias)
    if model.thing_head is not None:  # masks that do not all lie close to one half
        torch.nn.init.normal_(model.thing_head.mask_head.predictor.weight, std=0.5)
    if model.merge is not None:
        model.merge = replace(model.merge, stuff_area_limit=16)
    return model.eval()


def assert_trains(model, inputs):
    """Finite losses, and a gradient for every weight, as DistributedDataParallel needs."""
    losses = model.train()(inputs)
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values()), losses
    model.zero_grad()
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    return losses


def assert_contract(result, height, width, things=True, stuff=True):
    """What DESIGN promises of one image's result."""
    found = result["instances"]
    n = len(found)
    assert found.image_size == (height, width)
    assert found.pred_boxes.tensor.shape == (n, 4)
    assert found.scores.dtype == torch.float32
    assert found.pred_classes.dtype == torch.int64
    assert all(0 <= c < THINGS for c in found.pred_classes.tolist())
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert found.has("pred_masks") == things
    if things:
        assert found.pred_masks.shape == (n, height, width)
        assert found.pred_masks.dtype == torch.bool
    assert ("sem_seg" in result) == stuff
    if stuff:
        assert result["sem_seg"].shape == (STUFF_LABELS, height, width)
    assert ("panoptic_seg" in result) == (things and stuff)
    if things and stuff:
        panoptic, segments = result["panoptic_seg"]
        assert panoptic.shape == (height, width)
        assert panoptic.dtype == torch.int32
        areas = {int(i): int((panoptic == i).sum()) for i in panoptic.unique() if i}
        assert {s["id"]: s["area"] for s in segments} == areas
        for segment in segments:
            keys = {"id", "isthing", "category_id", "area"}
            assert set(segment) == keys | ({"score"} if segment["isthing"] else set())
            assert all(type(v) in (int, bool, float) for v in segment.values())


@hard_images
def test_hard_images_train(image):
    losses = assert_trains(tiny_model(), [image])
    assert set(losses) == LOSSES
    if not len(image["instances"]):
        assert losses["loss_mask"] == losses["loss_box_reg"] == 0


@hard_images
def test_hard_images_train_beside_others(image):
    assert_trains(tiny_model(), [image, make_input(boxes=BOXES)])


@hard_images
def test_hard_images_are_evaluated(image):
    (result,) = sure_of_something(tiny_model())([image])
    assert_contract(result, image["height"], image["width"])


def test_void_and_crowd_images_have_no_loss_of_their_own():
    void = make_input(stuff=255)
    assert tiny_model()([void])["loss_sem_seg"] == 0
    covered = make_input(crowds=[(0, 0, 96, 64)])
    assert tiny_model()([covered])["loss_cls"] == 0


@pytest.mark.parametrize("branches", BRANCHES.values(), ids=BRANCHES)
def test_branches_are_switches(branches):
    """Without both it is a RetinaNet with flows (Table XII)."""
    model = tiny_model(**branches)
    things, stuff = branches.get("things", True), branches.get("stuff", True)
    losses = assert_trains(model, [make_input(boxes=BOXES)])
    off = {"loss_mask": not things, "loss_sem_seg": not stuff}
    assert set(losses) == {name for name in LOSSES if not off.get(name)}
    (result,) = sure_of_something(model)([make_input()])
    assert_contract(result, 64, 96, things, stuff)
    assert len(result["instances"]) > 0


def test_results_are_at_the_size_asked_for():
    image = make_input((50, 70)) | {"height": 75, "width": 140}
    (result,) = sure_of_something(tiny_model())([image])
    assert_contract(result, 75, 140)
    assert len(result["instances"]) > 0
    assert result["panoptic_seg"][1]
    image.pop("height"), image.pop("width")
    (result,) = sure_of_something(tiny_model())([image])
    assert_contract(result, 50, 70)


def test_no_detections():
    model = tiny_model().eval()
    torch.nn.init.constant_(model.detector.cls_score.bias, -99)
    (result,) = model([make_input()])
    assert_contract(result, 64, 96)
    assert len(result["instances"]) == 0


def assert_same_result(a, b):
    """Equal but for rounding, which may tip a pixel on the border of a mask."""
    assert torch.equal(a["instances"].pred_classes, b["instances"].pred_classes)
    torch.testing.assert_close(a["instances"].scores, b["instances"].scores)
    boxes = [x["instances"].pred_boxes.tensor for x in (a, b)]
    torch.testing.assert_close(*boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(a["sem_seg"], b["sem_seg"], rtol=1e-4, atol=1e-4)
    for x, y in (
        (a["instances"].pred_masks, b["instances"].pred_masks),
        (a["panoptic_seg"][0], b["panoptic_seg"][0]),
    ):
        assert (x != y).float().mean() < 1e-3
    a, b = ([(s["id"], s["category_id"]) for s in x["panoptic_seg"][1]] for x in (a, b))
    assert a == b


@pytest.mark.parametrize(
    "sizes",
    [
        [(64, 96), (64, 96)],
        [(64, 96), (60, 70)],
        [(64, 96), (128, 64)],
        [(32, 33), (64, 96), (31, 50)],
    ],
    ids=["equal", "padded alike", "unlike", "mixed order"],
)
def test_batch_gives_the_results_of_its_images_alone(sizes):
    model = sure_of_something(tiny_model())
    images = [make_input(size, seed=i) for i, size in enumerate(sizes)]
    images[0]["height"] *= 2
    together = model(images)
    assert len(together[0]["instances"]) > 3
    for image, result in zip(images, together, strict=True):
        assert_same_result(result, model([image])[0])


def test_large_batches_run_in_parts_on_a_cpu(monkeypatch):
    model = sure_of_something(tiny_model())
    images = [make_input((64, 96), seed=i) for i in range(5)]
    together = model(images)
    limit = "spatialflow.modeling.batching.PIXELS_AT_A_TIME_ON_CPU"
    monkeypatch.setattr(limit, 2 * 64 * 96)
    batch_sizes = []
    model.backbone.register_forward_pre_hook(lambda _, args: batch_sizes.append(len(args[0])))
    in_parts = model(images)
    assert batch_sizes == [2, 2, 1]
    for a, b in zip(together, in_parts, strict=True):
        assert_same_result(a, b)


def test_training_labels_do_not_depend_on_a_larger_companion():
    """The companion's padding adds cells; none of them counts for the smaller image."""
    model = tiny_model()
    small, large = make_input(boxes=BOXES), make_input((128, 160), seed=1)

    def labels(*images):
        batch = model.preprocess_image(images)
        grids = [x.shape[-2:] for x in model.extract_features(batch.tensor).cls]
        anchors = model.detector.anchor_generator([torch.zeros(1, 1, *grid) for grid in grids])
        targets = model.detector.label_anchors(
            anchors, [x["instances"] for x in images], [x["crowd_mask"] for x in images], grids
        )
        counted = targets.labels[0] != -1
        chosen = torch.cat([a.tensor for a in anchors])[counted]
        return [chosen, targets.labels[0][counted], targets.boxes[0][counted]]

    for alone, beside in zip(labels(small), labels(small, large), strict=True):
        assert torch.equal(alone, beside)


def test_labels_are_padded_with_the_ignored_value():
    images = [make_input((40, 50), stuff=3), make_input((64, 96), stuff=2)]
    targets = tiny_model().pad_labels([x["sem_seg"] for x in images], 255)
    assert targets.shape == (2, 64, 96)
    assert (targets[0, :40, :50] == 3).all()
    assert (targets[0] == 255).sum() == 64 * 96 - 40 * 50
    assert (targets[1] == 2).all()


def test_images_are_normalised_then_padded_with_zeros():
    image = make_input((40, 50))
    batch = tiny_model().preprocess_image([image])
    assert batch.image_sizes == [(40, 50)]
    expected = (image["image"][1].float() - 110) / 50
    torch.testing.assert_close(batch.tensor[0, 1, :40, :50], expected)
    assert batch.tensor.shape == (1, 3, 64, 64)
    assert not batch.tensor[:, :, 40:].any()
    assert not batch.tensor[:, :, :, 50:].any()


def test_inputs_are_left_as_they_were():
    image = make_input(boxes=BOXES)
    before = copy.deepcopy(image)
    model = tiny_model()
    model([image])
    model.eval()([image])
    assert torch.equal(image["image"], before["image"])
    assert torch.equal(image["sem_seg"], before["sem_seg"])
    instances = [x["instances"].gt_boxes.tensor for x in (image, before)]
    assert torch.equal(*instances)


def test_training_learns_one_image():
    model, image = tiny_model(), make_input(boxes=BOXES)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        losses = model([image])
        history.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    for name in LOSSES:
        assert history[-1][name] < 0.9 * history[0][name], name
    assert sum(history[-1].values()) < 0.7 * sum(history[0].values())


def test_evaluation_needs_no_ground_truth_and_builds_no_graph():
    image = {"image": make_input()["image"]}
    (result,) = sure_of_something(tiny_model())([image])
    assert not result["sem_seg"].requires_grad


def test_settings_reach_the_merge():
    image = make_input()
    labels = tiny_model().eval()([image])[0]["sem_seg"].argmax(dim=0)

    def stuff_of(**settings):
        torch.manual_seed(0)
        model = sure_of_something(tiny_model())
        model.merge = HeuristicMerge(**{"stuff_area_limit": 0, **settings})
        (result,) = model([image])
        segments = result["panoptic_seg"][1]
        return {s["category_id"] for s in segments if not s["isthing"]}, [
            s for s in segments if s["isthing"]
        ]

    assert labels.unique().numel() > 1
    alone = {"score_thresh": 2.0}
    stuff, things = stuff_of(**alone, thing_labels=())
    assert not things
    left_out = min(stuff)
    assert stuff_of(**alone, thing_labels=(left_out,))[0] == stuff - {left_out}
    assert stuff_of(**alone, stuff_area_limit=64 * 96 + 1)[0] == set()
    strict = stuff_of(score_thresh=0.0, overlap_thresh=0.0, box_fill_min_free=None)[1]
    lenient = stuff_of(score_thresh=0.0, overlap_thresh=1.0, box_fill_min_free=None)[1]
    assert len(strict) < len(lenient)
    filled = stuff_of(score_thresh=0.0, overlap_thresh=0.0, box_fill_min_free=0.01)[1]
    assert sum(s["area"] for s in filled) > sum(s["area"] for s in strict)
    assert "panoptic_seg" not in tiny_model(merge=None).eval()([image])[0]


def test_visualizer_takes_the_panoptic_map():
    (result,) = sure_of_something(tiny_model())([make_input()])
    panoptic, segments = result["panoptic_seg"]
    assert {s["isthing"] for s in segments} == {True, False}
    metadata = Metadata(
        thing_classes=["a"] * THINGS,
        stuff_classes=["b"] * STUFF_LABELS,
        thing_colors=[(9, 9, 9)] * THINGS,
        stuff_colors=[(8, 8, 8)] * STUFF_LABELS,
    )
    visualizer = Visualizer(torch.zeros(64, 96, 3).numpy(), metadata)
    drawn = visualizer.draw_panoptic_seg(panoptic, segments).get_image()
    assert drawn.any()


CONFIG = [
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    # GroupNorm needs 32 channels.
    *("MODEL.FPN.NORM", "", "MODEL.ROI_MASK_HEAD.NORM", "", "MODEL.RETINANET.NORM", ""),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.RETINANET.NUM_CLASSES", THINGS),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", STUFF_LABELS),
]


STAGES_FROM_2 = ["res2", "res3", "res4", "res5"]
WITH_P2 = (
    *("SEGMENTATION_FEATURES", ["p2", "p3", "p4", "p5"]),
    *("MODEL.RESNETS.OUT_FEATURES", STAGES_FROM_2, "MODEL.FPN.IN_FEATURES", STAGES_FROM_2),
)


def build(*opts):
    cfg = load_config(str(config_dir() / "Base-Small.yaml"), [*CONFIG, *opts])
    return build_model(cfg)


@pytest.mark.parametrize(
    "opts",
    [
        (),
        [x for task in ("CLS", "REG", "STUFF", "THING") for x in (f"NUM_STAGES.{task}", 0)],
        ("NUM_STAGES.THING", 4, "NUM_STAGES.REG", 2),
        ("FLOWS", []),
        ("FLOWS", ["cls_reg", "cls_stuff", "cls_thing", "stuff_thing"]),
        ("DEFORM_ON", ["cls", "stuff", "thing"]),
        ("THING_ON", False),
        ("STUFF_ON", False),
        ("THING_ON", False, "STUFF_ON", False),
        ("P7_RELU", False, "ALIGN_CORNERS", True, "STUFF_RESIZE", "nearest"),
        ("BOX_FILL.ENABLED", False),
        ("DETECTOR", "GFL", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
        WITH_P2,
        (*WITH_P2, "CHECKPOINT_SUBNETS", True),
        (*WITH_P2, "FLOW_TYPE", "AttentionFlow", "DEFORM_ON", ["stuff"]),
    ],
    ids=lambda opts: " ".join(map(str, opts)) or "defaults",
)
def test_every_switch_of_the_config_trains_and_evaluates(opts):
    opts = [
        o if i % 2 or o.startswith("MODEL.") else f"MODEL.SPATIALFLOW.{o}"
        for i, o in enumerate(opts)
    ]
    model = build(*opts)
    assert_trains(model, [make_input(boxes=BOXES), make_input((50, 60))])
    (result,) = model.eval()([make_input()])
    things, stuff = model.thing_head is not None, model.stuff_head is not None
    assert_contract(result, 64, 96, things, stuff)


def test_with_p2_small_things_have_their_masks_from_it():
    key = "MODEL.SPATIALFLOW.SEGMENTATION_FEATURES"
    model = build(key, WITH_P2[1], *WITH_P2[2:])
    pooler = model.thing_head.mask_pooler
    assert [x.spatial_scale for x in pooler.level_poolers] == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    features = model.extract_features(torch.randn(1, 3, 64, 96)).thing
    boxes = [Boxes(torch.tensor([[0.0, 0.0, 90.0, 60.0]]))]
    changed = [features[0] + 1, *features[1:]]
    assert not torch.equal(pooler(features, boxes), pooler(changed, boxes))


def test_an_unknown_detector_is_refused():
    with pytest.raises(ValueError, match="DETECTOR is 'YOLO'; choose among RetinaNet, GFL"):
        build("MODEL.SPATIALFLOW.DETECTOR", "YOLO")


def test_a_backbone_without_p2_is_refused():
    with pytest.raises(ValueError, match="SEGMENTATION_FEATURES has p2.*IN_FEATURES"):
        build("MODEL.SPATIALFLOW.SEGMENTATION_FEATURES", WITH_P2[1])
    with pytest.raises(ValueError, match="SEGMENTATION_FEATURES is .'p2'"):
        build("MODEL.SPATIALFLOW.SEGMENTATION_FEATURES", ["p2"])


def test_box_losses_of_detectron2():
    losses = {}
    for kind in ("smooth_l1", "giou", "diou", "ciou"):
        torch.manual_seed(0)
        model = build("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", kind)
        batch = [make_input(boxes=BOXES), make_input((50, 60))]
        losses[kind] = assert_trains(model, batch)["loss_box_reg"].item()
    assert len(set(losses.values())) == len(losses)
    with pytest.raises(ValueError, match="huber"):
        build("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "huber")([make_input(boxes=BOXES)])


def test_config_reaches_the_model():
    combine = "MODEL.PANOPTIC_FPN.COMBINE"
    model = build(
        *("MODEL.SPATIALFLOW.ALIGN_CORNERS", True, "MODEL.SPATIALFLOW.STUFF_RESIZE", "nearest"),
        *("MODEL.SEM_SEG_HEAD.THING_LABELS", [1, 2], f"{combine}.OVERLAP_THRESH", 0.25),
        *(f"{combine}.INSTANCES_CONFIDENCE_THRESH", 0.5, f"{combine}.STUFF_AREA_LIMIT", 2048),
        *("MODEL.SPATIALFLOW.BOX_FILL.MIN_FREE", 0.5, "TEST.DETECTIONS_PER_IMAGE", 7),
        *("MODEL.RETINANET.NMS_THRESH_TEST", 0.3, "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0.75),
        *("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 9, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.1),
    )
    assert model.stuff_head.align_corners is True
    assert model.stuff_head.resize == "nearest"
    assert model.stuff_head.loss_weight == 0.75
    assert model.merge == HeuristicMerge((1, 2), 0.5, 0.25, 2048, 0.5)
    detector = model.detector
    assert (detector.max_detections, detector.nms_thresh) == (7, 0.3)
    assert (detector.topk_candidates, detector.score_thresh) == (9, 0.1)
    unfilled = build("MODEL.SPATIALFLOW.BOX_FILL.ENABLED", False).merge
    assert unfilled.box_fill_min_free is None
    assert build(f"{combine}.ENABLED", False).merge is None


def test_masks_and_stuff_of_the_stages_between_are_those_of_the_result():
    """The parts that test-time augmentation and ensembles put together anew."""
    model, image = sure_of_something(tiny_model()), make_input()
    (result,) = model([image])
    with torch.no_grad():
        images = model.preprocess_image([image])
        sizes = images.image_sizes
        seen = model.first_pass(images, sizes)
        found = model.select(seen.candidates[0])
        assert torch.equal(found.pred_boxes.tensor, result["instances"].pred_boxes.tensor)
        (masks,) = model.predict_masks(seen.mask_features, [found], sizes)
        assert masks.shape == (len(found), 28, 28)
        (scores,) = seen.stuff
        assert torch.equal(scores, result["sem_seg"])
        panoptic, segments = model.merge(result["instances"], scores)
    assert torch.equal(panoptic, result["panoptic_seg"][0])
    assert segments == result["panoptic_seg"][1]


def test_panoptic_maps_alone(monkeypatch):
    model = sure_of_something(tiny_model())
    images = [make_input(), make_input((50, 60), seed=1), {**make_input(seed=2), "height": 128}]
    expected, asked = model(images), []
    predict_masks = model.predict_masks
    monkeypatch.setattr(
        model, "predict_masks", lambda f, i, s: asked.extend(i) or predict_masks(f, i, s)
    )
    found = model.panoptic_inference(images)
    threshold = model.merge.score_thresh
    scores = [x["instances"].scores for x in expected]
    assert any(0 < (s >= threshold).sum() < len(s) for s in scores)
    assert sum(map(len, asked)) == sum(int((s >= threshold).sum()) for s in scores)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == {"panoptic_seg"}
        assert torch.equal(one["panoptic_seg"][0], other["panoptic_seg"][0])
        assert one["panoptic_seg"][1] == other["panoptic_seg"][1]


def test_without_detections_the_panoptic_map_alone_is_of_stuff():
    model = tiny_model(merge=HeuristicMerge(score_thresh=1.1, stuff_area_limit=1)).eval()
    (found,), (expected,) = (f([make_input()]) for f in (model.panoptic_inference, model))
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
    assert found["panoptic_seg"][0].any()


@pytest.mark.parametrize("kwargs", [{"things": False}, {"merge": None}], ids=str)
def test_a_model_without_panoptic_maps_says_so(kwargs):
    with pytest.raises(RuntimeError, match="no panoptic output"):
        tiny_model(**kwargs).eval().panoptic_inference([make_input()])


def test_masks_of_given_boxes_are_taken_at_the_network_size():
    model = sure_of_something(tiny_model())
    with torch.no_grad():
        images = model.preprocess_image([make_input()])
        passes = [model.first_pass(images, [size]) for size in ((64, 96), (128, 192))]
        found, twice = (model.select(seen.candidates[0]) for seen in passes)
        features = passes[0].mask_features
        masks = [model.predict_masks(features, [f], [(64, 96)])[0] for f in (found, twice)]
    assert torch.equal(twice.pred_boxes.tensor, 2 * found.pred_boxes.tensor)
    torch.testing.assert_close(*masks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_numbers_of_the_cpu():
    images = [make_input(boxes=BOXES), make_input((50, 60))]
    model = tiny_model()
    cpu = assert_trains(model, images)
    gradients = [p.grad.clone() for p in model.parameters()]
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        cuda = assert_trains(model.cuda(), images)
        results = sure_of_something(model)(images)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    for name in LOSSES:
        torch.testing.assert_close(cuda[name].cpu(), cpu[name], rtol=1e-3, atol=1e-5)
    for parameter, expected in zip(model.parameters(), gradients, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(parameter.grad.cpu(), expected, rtol=1e-2, atol=1e-2 * scale)
    for found, expected in zip(results, model.cpu()(images), strict=True):
        assert found["panoptic_seg"][0].is_cuda
        torch.testing.assert_close(
            found["sem_seg"].cpu(), expected["sem_seg"], rtol=1e-3, atol=1e-3
        )
        same = found["panoptic_seg"][0].cpu() == expected["panoptic_seg"][0]
        assert same.float().mean() > 0.99
