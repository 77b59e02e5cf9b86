"""SpatialFlow from checkpoints with the names and shapes of Detectron2's model zoo."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import detectron2.model_zoo
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.utils.events import EventStorage

from spatialflow import model_zoo
from spatialflow.checkpoint import SafeCheckpointer
from spatialflow.checkpoint.detectron2_zoo import ZOO_RETINANET, zoo_url
from spatialflow.data import prepare_datasets
from spatialflow.engine import Trainer
from spatialflow.model_zoo import get_config
from spatialflow.modeling import SpatialFlow

OURS = "COCO/spatialflow_R_50_from_retinanet.yaml"
ZOO_PANOPTIC_FPN = "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml"
DETECTION_ALONE = (
    *("MODEL.SPATIALFLOW.THING_ON", False, "MODEL.SPATIALFLOW.STUFF_ON", False),
    *("MODEL.SPATIALFLOW.FLOWS", []),
)
PARTS = ("images", "logits", "deltas", "anchors", "boxes")
HEADS = ("thing_head.mask_head.", "stuff_head.")


def zoo_model(name=ZOO_RETINANET, *, full_width=False):
    """A model of Detectron2's zoo with random weights that all show in the result."""
    cfg = detectron2.model_zoo.get_config(name)
    model = _build(cfg, full_width)
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "subnet" in key and key.endswith("weight"):
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
            elif key.endswith("bias"):
                parameter.normal_(0, 0.1)
    if name == ZOO_RETINANET:
        scale_predictions(model)
    return model


@torch.no_grad()
def scale_predictions(model):
    """Give logits and deltas the sizes that trained ones have."""
    _, logits, deltas, *_ = outputs_of_retinanet(model, image())
    model.head.cls_score.weight.mul_(1.5 / torch.cat(logits, 1).std())
    model.head.bbox_pred.weight.mul_(0.3 / torch.cat(deltas, 1).std())
    model.head.cls_score.bias.sub_(2)


def spatialflow(*opts, full_width=False, things=80):
    cfg = get_config(OURS)
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = things, 54
    cfg.merge_from_list(list(opts))
    return _build(cfg, full_width)


def _build(cfg, full_width):
    cfg.MODEL.DEVICE = "cpu"
    if not full_width:
        narrow(cfg)
    torch.manual_seed(0)
    return build_model(cfg).eval()


def narrow(cfg):
    """Few channels, the same layers."""
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16


def save_pkl(state, path):
    """As the model zoo writes it."""
    arrays = {key: value.numpy() for key, value in state.items()}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return str(path)


def save_pth(state, path):
    torch.save({"model": state}, path)
    return str(path)


@pytest.fixture(scope="module")
def retinanet():
    return zoo_model()


@pytest.fixture
def weights(retinanet, tmp_path):
    return save_pth(retinanet.state_dict(), tmp_path / "model_final.pth")


@pytest.fixture
def panoptic_fpn(tmp_path):
    """A checkpoint of Panoptic FPN."""
    state = zoo_model(ZOO_PANOPTIC_FPN).state_dict()
    return save_pkl(state, tmp_path / "panoptic_fpn.pkl")


@torch.no_grad()
def outputs_of_retinanet(model, inputs):
    """Normalised images, logits, deltas and anchors of each level, and the boxes before NMS."""
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    features = [features[name] for name in model.head_in_features]
    logits, deltas = model.head(features)
    logits = [permute_to_N_HWA_K(x, model.num_classes) for x in logits]
    deltas = [permute_to_N_HWA_K(x, 4) for x in deltas]
    anchors = model.anchor_generator(features)
    size = images.image_sizes[0]
    candidates = model._decode_multi_level_predictions(
        anchors,
        [x[0].sigmoid() for x in logits],
        [x[0] for x in deltas],
        model.test_score_thresh,
        model.test_topk_candidates,
        size,
    )
    boxes = [
        model.box2box_transform.apply_deltas(d[0], a.tensor)
        for d, a in zip(deltas, anchors, strict=True)
    ]
    candidates.pred_boxes.clip(size)
    return images.tensor, logits, deltas, [a.tensor for a in anchors], boxes, candidates


@torch.no_grad()
def outputs_of_spatialflow(model, inputs):
    images = model.preprocess_image(inputs)
    features = model.extract_features(images.tensor)
    logits, deltas = model.detector(features.cls, features.reg)
    anchors = model.detector.anchor_generator(features.cls)
    boxes = [model.detector.decode(d[0], a.tensor) for d, a in zip(deltas, anchors, strict=True)]
    sizes = images.image_sizes
    candidates = model.find_candidates(model.dense(images.tensor), sizes, sizes)[0]
    return images.tensor, logits, deltas, [a.tensor for a in anchors], boxes, candidates


def rows(candidates):
    """Box, score and class of each candidate."""
    columns = (
        candidates.pred_boxes.tensor,
        candidates.scores[:, None],
        candidates.pred_classes[:, None],
    )
    return {tuple(row) for row in torch.cat(columns, dim=1).tolist()}


def image(height=160, width=224):
    generator = torch.Generator().manual_seed(2)
    return [{"image": torch.randint(256, (3, height, width), generator=generator)}]


def shrinks_too_much(model, deltas):
    """Whether a box is below the smallest that SpatialFlow, unlike RetinaNet, decodes."""
    return min(d[..., 2:].min().item() for d in deltas) < -model.box2box_transform.scale_clamp


def equal(ours, theirs):
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_retinanet_of_the_zoo_is_that_retinanet(tmp_path, caplog):
    retinanet = zoo_model(full_width=True)
    path = save_pkl(retinanet.state_dict(), tmp_path / "model_final.pkl")
    model = spatialflow(full_width=True)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        SafeCheckpointer(model).load(path)
    Path(path).unlink()  # 150 MB
    assert not caplog.messages
    ours, theirs = outputs_of_spatialflow(model, image()), outputs_of_retinanet(retinanet, image())
    for what, a, b in zip(PARTS, ours[:-1], theirs[:-1], strict=True):
        assert equal(a, b), what
    assert not shrinks_too_much(retinanet, theirs[2])
    # Its limit is 1000 pairs of anchor and class a level, ours 1000 anchors.
    assert rows(theirs[-1]) <= rows(ours[-1])
    assert len(rows(theirs[-1])) > 1000


@pytest.mark.parametrize("size", [(64, 96), (75, 130)])
def test_candidates_are_the_same_where_no_level_has_too_many(retinanet, weights, size):
    model = spatialflow()
    SafeCheckpointer(model).load(weights)
    retinanet.test_topk_candidates = model.detector.topk_candidates = 10**6
    theirs = outputs_of_retinanet(retinanet, image(*size))
    ours = outputs_of_spatialflow(model, image(*size))
    assert len(theirs[-1]) > 100
    assert not shrinks_too_much(retinanet, theirs[2])
    assert rows(ours[-1]) == rows(theirs[-1])


def test_flows_that_are_not_zero_give_other_scores_and_a_warning(retinanet, weights, caplog):
    model = spatialflow("MODEL.SPATIALFLOW.FLOW_INIT", "")
    with caplog.at_level(logging.WARNING):
        SafeCheckpointer(model).load(weights)
    assert "the boxes are not those of Detectron2's RetinaNet" in caplog.text
    assert "flows into cls are not zero (MODEL.SPATIALFLOW.FLOW_INIT zero)" in caplog.text
    assert "into reg" not in caplog.text
    ours, theirs = outputs_of_spatialflow(model, image()), outputs_of_retinanet(retinanet, image())
    assert not equal(ours[1], theirs[1])
    assert equal(ours[2], theirs[2])


@pytest.mark.parametrize(
    "opts, key",
    [
        (["MODEL.SPATIALFLOW.P7_RELU", False], "P7_RELU"),
        (["MODEL.RESNETS.STRIDE_IN_1X1", False], "STRIDE_IN_1X1"),
        (["MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53]], "PIXEL_MEAN"),
        (["MODEL.PIXEL_STD", [58.395, 57.12, 57.375]], "PIXEL_STD"),
        (["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.25, 1.0, 4.0]]], "ANCHOR_GENERATOR"),
        (["MODEL.SPATIALFLOW.DEFORM_ON", ["cls"]], "DEFORM_ON"),
    ],
)
def test_another_detector_is_warned_of(retinanet, weights, caplog, opts, key):
    model = spatialflow(*opts)
    with caplog.at_level(logging.WARNING):
        SafeCheckpointer(model).load(weights)
    [message] = [m for m in caplog.messages if "not those of Detectron2's RetinaNet" in m]
    assert key in message
    ours, theirs = outputs_of_spatialflow(model, image()), outputs_of_retinanet(retinanet, image())
    assert not (equal(ours[1], theirs[1]) and equal(ours[-2], theirs[-2]))


@pytest.mark.parametrize("flow_type", ["ConvFlow", "AttentionFlow"])
def test_every_tensor_is_used(retinanet, weights, caplog, flow_type):
    model = spatialflow("MODEL.SPATIALFLOW.FLOW_TYPE", flow_type)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        SafeCheckpointer(model).load(weights)
    after, theirs = model.state_dict(), retinanet.state_dict()
    filled = [key for key in after if key.startswith(("backbone.", "detector."))]
    filled += [
        k for k in after if k.startswith(("subnets.cls.", "subnets.reg.")) if "flow" not in k
    ]
    assert len(filled) == len(theirs)
    contents = [
        sorted((tuple(state[k].shape), state[k].numpy().tobytes()) for k in keys)
        for state, keys in ((after, filled), (theirs, theirs))
    ]
    assert contents[0] == contents[1]
    rest = set(after) - set(filled)
    assert all(torch.equal(after[key], before[key]) for key in rest)
    assert f"holds a RetinaNet of Detectron2; the other {len(rest)} tensors start" in caplog.text


def test_settings_in_older_checkpoints_are_compared(retinanet, tmp_path, caplog):
    anchors = enumerate(retinanet.anchor_generator.cell_anchors)
    buffers = {f"anchor_generator.cell_anchors.{i}": cell for i, cell in anchors}
    buffers |= {"pixel_mean": retinanet.pixel_mean, "pixel_std": retinanet.pixel_std}
    path = save_pkl({**retinanet.state_dict(), **buffers}, tmp_path / "old.pkl")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        SafeCheckpointer(spatialflow()).load(path)
    assert not caplog.messages
    buffers["pixel_mean"] = retinanet.pixel_mean + 1
    path = save_pkl({**retinanet.state_dict(), **buffers}, tmp_path / "other.pkl")
    with caplog.at_level(logging.WARNING):
        SafeCheckpointer(spatialflow()).load(path)
    assert "MODEL.PIXEL_MEAN" in caplog.text and "ANCHOR" not in caplog.text


def test_detection_alone_can_be_evaluated(retinanet, weights):
    model = spatialflow(*DETECTION_ALONE)
    SafeCheckpointer(model, complete=True).load(weights)
    assert equal(
        outputs_of_spatialflow(model, image())[1], outputs_of_retinanet(retinanet, image())[1]
    )
    with pytest.raises(ValueError, match="lacks"):
        SafeCheckpointer(spatialflow(), complete=True).load(weights)


def test_other_class_counts_start_afresh(retinanet, weights):
    with pytest.raises(ValueError, match=r"detector\.cls_score.*\n.*\n.*CLASS_LAYERS\.REINIT"):
        SafeCheckpointer(spatialflow(things=5)).load(weights)
    model = spatialflow(things=5)
    fresh = model.detector.cls_score.weight.clone()
    checkpointer = SafeCheckpointer(
        model, starts_afresh=lambda name: name.startswith(SpatialFlow.class_layers)
    )
    checkpointer.load(weights)
    assert torch.equal(model.detector.cls_score.weight, fresh)
    assert equal(
        outputs_of_spatialflow(model, image())[2], outputs_of_retinanet(retinanet, image())[2]
    )


def test_heads_of_a_panoptic_fpn(weights, panoptic_fpn, caplog):
    model = spatialflow()
    with caplog.at_level(logging.INFO):
        SafeCheckpointer(model, heads_weights=panoptic_fpn).load(weights)
    theirs = zoo_model(ZOO_PANOPTIC_FPN).state_dict()
    names = [name for name in model.state_dict() if name.startswith(HEADS)]
    assert len(names) > 20
    for name in names:
        key = name.replace("thing_head.", "roi_heads.").replace("stuff_head.", "sem_seg_head.")
        assert torch.equal(model.state_dict()[name], theirs[key]), name
    assert f"the {len(names)} tensors of stuff_head and thing_head are taken" in caplog.text
    for part in ("backbone.", "proposal_generator.", "roi_heads.box_head", "sem_seg_head.p2"):
        assert part in caplog.text
    flows = sum(".flows." in key for key in model.state_dict())
    [message] = [m for m in caplog.messages if "start from their initialisation" in m]
    others = [k for k in model.state_dict() if k.startswith(("subnets.stuff.", "subnets.thing."))]
    flows_of_cls = flows - sum(".flows." in key for key in others)
    assert f"the other {len(others) + flows_of_cls} tensors" in message


def test_heads_of_a_branch_that_is_off_are_left(weights, panoptic_fpn, caplog):
    model = spatialflow("MODEL.SPATIALFLOW.THING_ON", False)
    with caplog.at_level(logging.INFO):
        SafeCheckpointer(model, heads_weights=panoptic_fpn).load(weights)
    assert "tensors of stuff_head are taken" in caplog.text
    assert "roi_heads.mask_head" in caplog.text


def test_heads_that_the_weights_have_stay(panoptic_fpn, tmp_path):
    trained = spatialflow()
    path = save_pth(trained.state_dict(), tmp_path / "trained.pth")
    model = spatialflow()
    SafeCheckpointer(model, heads_weights=panoptic_fpn).load(path)
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_resuming_needs_no_heads(tmp_path):
    model = spatialflow()
    checkpointer = SafeCheckpointer(model, str(tmp_path), heads_weights="nowhere.pkl")
    checkpointer.save("model_0000001")
    checkpointer.resume_or_load("", resume=True)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pkl not found; check .*HEADS_WEIGHTS"):
        SafeCheckpointer(model, heads_weights="nowhere.pkl").load(
            str(tmp_path / "model_0000001.pth")
        )


def own_data_config(toy_datasets, *opts):
    """configs/own_data with the toy scenes, to train from a narrow model."""
    registered = [
        [f"zoo_{split}", *(str(toy_datasets / "toy" / part) for part in parts)]
        for split in ("train", "val")
        for parts in [(split, f"panoptic_{split}", f"panoptic_{split}.json")]
    ]
    cfg = get_config("own_data/spatialflow_R_50_from_retinanet.yaml")
    sets = ["REGISTER", registered, "TRAIN", ("zoo_train",), "TEST", ("zoo_val",)]
    cfg.merge_from_list([x if i % 2 else f"DATASETS.{x}" for i, x in enumerate(sets)])
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, *opts])
    narrow(cfg)
    prepare_datasets(cfg)
    return cfg


def test_training_on_own_data_starts_with_both(toy_datasets, tmp_path, weights, panoptic_fpn):
    keys = ("MODEL.WEIGHTS", weights, "MODEL.SPATIALFLOW.HEADS_WEIGHTS", panoptic_fpn)
    opts = ("OUTPUT_DIR", str(tmp_path), "SOLVER.IMS_PER_BATCH", 1)
    schedule = ("SOLVER.REFERENCE_IMS_PER_BATCH", 1, "INPUT.MIN_SIZE_TRAIN", (128,))
    trainer = Trainer(own_data_config(toy_datasets, *keys, *opts, *schedule))
    fresh = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    changed = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, fresh[k])}
    assert not any(key.startswith(SpatialFlow.class_layers) for key in changed)
    for part in ("backbone.bottom_up.res4", "backbone.top_block", "subnets.cls.3", "subnets.reg.0"):
        assert any(key.startswith(part) for key in changed), part
    for part in ("detector.bbox_pred", "thing_head.mask_head.mask_fcn4", "stuff_head.p5.4"):
        assert any(key.startswith(part) for key in changed), part
    trainer.iter = 0
    with EventStorage():
        trainer.run_step()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def test_model_of_the_own_zoo_has_the_heads(weights, panoptic_fpn, monkeypatch):
    cfg = get_config(OURS)
    narrow(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.SPATIALFLOW.HEADS_WEIGHTS = weights, panoptic_fpn
    monkeypatch.setattr("spatialflow.model_zoo.get_config", lambda *args: cfg)
    model = model_zoo.get(OURS, device="cpu")
    theirs = zoo_model(ZOO_PANOPTIC_FPN).sem_seg_head.predictor.weight
    assert torch.equal(model.stuff_head.predictor.weight, theirs)


def named(*names):
    return {name: torch.zeros(1) for name in names}


MASK_RCNN = named("backbone.bottom_up.x", "proposal_generator.x", "roi_heads.mask_head.x")


@pytest.mark.parametrize(
    "family, state",
    [
        ("Mask R-CNN", MASK_RCNN),
        ("Panoptic FPN", {**MASK_RCNN, **named("sem_seg_head.p2.0.weight")}),
        ("Keypoint R-CNN", {**MASK_RCNN, **named("roi_heads.keypoint_head.x")}),
        ("Faster R-CNN", named("proposal_generator.x", "roi_heads.box_head.fc1.weight")),
        ("RPN", named("backbone.x", "proposal_generator.rpn_head.conv.weight")),
        ("Semantic FPN", named("backbone.x", "sem_seg_head.p2.0.weight")),
    ],
)
@pytest.mark.parametrize("save", [save_pth, save_pkl])
def test_other_models_of_the_zoo_are_refused_by_name(tmp_path, family, state, save):
    path = save(state, tmp_path / f"model.{save.__name__.removeprefix('save_')}")
    with pytest.raises(ValueError) as error:
        SafeCheckpointer(spatialflow()).load(path)
    for part in (path, f"Detectron2's {family},", zoo_url(ZOO_RETINANET), "HEADS_WEIGHTS"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "state, what", [(MASK_RCNN, "Detectron2's Mask R-CNN"), (named("conv1"), "another model")]
)
def test_heads_come_from_a_panoptic_fpn_alone(weights, tmp_path, state, what):
    path = save_pth(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"HEADS_WEIGHTS takes .* is one of {what}"):
        SafeCheckpointer(spatialflow(), heads_weights=path).load(weights)


def test_heads_alone_are_no_start(panoptic_fpn):
    with pytest.raises(ValueError, match=r"HEADS_WEIGHTS gives heads to .* which is empty"):
        SafeCheckpointer(spatialflow(), heads_weights=panoptic_fpn).load("")


def test_heads_need_a_spatialflow(retinanet, weights, panoptic_fpn):
    with pytest.raises(ValueError, match="HEADS_WEIGHTS .* a RetinaNet does not take heads"):
        SafeCheckpointer(retinanet, heads_weights=panoptic_fpn).load(weights)


def test_retinanets_own_model_loads_its_own_names(retinanet, weights):
    model = zoo_model()
    torch.nn.init.zeros_(model.head.cls_score.weight)
    SafeCheckpointer(model, complete=True).load(weights)
    assert torch.equal(model.head.cls_score.weight, retinanet.head.cls_score.weight)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.RESNETS.DEPTH", 101], r"the file has no backbone\.bottom_up\.res4\.10\."),
        (["MODEL.SPATIALFLOW.NUM_STAGES.CLS", 2], r"the model has no subnets\.cls\.2\.conv\.bias"),
        (["MODEL.FPN.NORM", "GN"], r"the model has no backbone\.fpn_lateral3\.bias"),
        (["MODEL.RETINANET.NORM", "GN"], r"the file has no subnets\.cls\.0\.conv\.norm"),
    ],
)
def test_a_retinanet_that_does_not_fit_is_refused(weights, opts, message):
    with pytest.raises(ValueError, match=message):
        SafeCheckpointer(spatialflow(*opts)).load(weights)


@pytest.mark.parametrize("name", ["head.ctrness.weight", "head.cls_subnet.1.weight"])
def test_a_tensor_without_a_place_is_named(retinanet, tmp_path, name):
    path = save_pth({**retinanet.state_dict(), **named(name)}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=f"the model has no {name}"):
        SafeCheckpointer(spatialflow()).load(path)


def test_configs_name_the_weights_of_the_zoo():
    for config in (OURS, "own_data/spatialflow_R_50_from_retinanet.yaml"):
        weights = get_config(config).MODEL.WEIGHTS
        assert weights == zoo_url(ZOO_RETINANET)
    weights = get_config("COCO/spatialflow_R_101_from_retinanet.yaml").MODEL.WEIGHTS
    assert weights == zoo_url("COCO-Detection/retinanet_R_101_FPN_3x.yaml")


@pytest.mark.parametrize("part", ["RETINANET", "ANCHOR_GENERATOR", "FPN", "RESNETS"])
def test_detection_is_configured_as_in_the_zoo(part):
    ours = get_config(OURS).MODEL[part]
    theirs = detectron2.model_zoo.get_config(ZOO_RETINANET).MODEL[part]
    differ = {key for key in theirs if ours[key] != theirs[key]}
    # The class count is the dataset's, the threshold of NMS the paper's.
    assert differ == ({"NUM_CLASSES", "NMS_THRESH_TEST"} if part == "RETINANET" else set())
