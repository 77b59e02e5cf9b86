"""Reading configs: the defaults, and what a wrong file or override says."""

from __future__ import annotations

import pytest
from detectron2.config import get_cfg

import spatialflow.modeling  # noqa: F401  the models say which class counts they read
from spatialflow.config import add_spatialflow_config, class_count_is_unset, config_dir, load_config

BASE = str(config_dir() / "Base-SpatialFlow.yaml")


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_defaults_are_the_papers():
    cfg = load_config(BASE)
    keys = cfg.MODEL.SPATIALFLOW
    assert dict(keys.NUM_STAGES) == {"CLS": 4, "REG": 4, "STUFF": 4, "THING": 1}  # Tables VII, VIII
    assert keys.FLOWS == ["reg_cls", "reg_stuff", "reg_thing", "stuff_thing"]  # eq. 3
    assert (keys.DEFORM_ON, keys.THING_ON, keys.STUFF_ON) == ([], True, True)
    assert cfg.MODEL.FPN.OUT_CHANNELS == 256  # Sec. III-A
    assert cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM == 128
    assert cfg.MODEL.ROI_MASK_HEAD.NUM_CONV == 4
    assert cfg.MODEL.ROI_MASK_HEAD.CONV_DIM == 256
    assert cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT == 0.25  # Table IV
    assert cfg.MODEL.RESNETS.NORM == "FrozenBN"  # "we fix the batch norm layer"
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (8, 0.005)  # Sec. IV-B
    assert cfg.SOLVER.REFERENCE_IMS_PER_BATCH == cfg.SOLVER.IMS_PER_BATCH
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == ((800,), 800)


def test_defaults_of_the_inference_are_the_papers():
    cfg = load_config(BASE)
    combine, fill = cfg.MODEL.PANOPTIC_FPN.COMBINE, cfg.MODEL.SPATIALFLOW.BOX_FILL
    assert cfg.MODEL.RETINANET.NMS_THRESH_TEST == 0.4
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100
    assert (combine.INSTANCES_CONFIDENCE_THRESH, combine.OVERLAP_THRESH) == (0.37, 0.37)
    assert combine.STUFF_AREA_LIMIT == 4900
    assert (fill.ENABLED, fill.MIN_FREE) == (True, 0.6)
    assert cfg.MODEL.SEM_SEG_HEAD.THING_LABELS == [0]


def test_detection_is_retinanets():
    cfg = load_config(BASE)
    retinanet = cfg.MODEL.RETINANET
    assert (retinanet.PRIOR_PROB, retinanet.IOU_THRESHOLDS) == (0.01, [0.4, 0.5])
    assert (retinanet.FOCAL_LOSS_ALPHA, retinanet.FOCAL_LOSS_GAMMA) == (0.25, 2.0)
    assert cfg.MODEL.ANCHOR_GENERATOR.OFFSET == 0.0
    assert cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS == [[0.5, 1.0, 2.0]]
    for level, sizes in enumerate(cfg.MODEL.ANCHOR_GENERATOR.SIZES, start=3):
        assert sizes == pytest.approx([4 * 2 ** (level + i / 3) for i in range(3)])


def test_keys_are_added_to_detectron2s_and_to_no_other_config():
    cfg = get_cfg()
    add_spatialflow_config(cfg)
    assert "SPATIALFLOW" in cfg.MODEL
    assert "SPATIALFLOW" not in get_cfg().MODEL
    cfg.MODEL.SPATIALFLOW.FLOWS.append("cls_reg")
    fresh = get_cfg()
    add_spatialflow_config(fresh)
    assert "cls_reg" not in fresh.MODEL.SPATIALFLOW.FLOWS


def test_detectron2s_own_keys_keep_their_defaults():
    cfg, plain = get_cfg(), get_cfg()
    add_spatialflow_config(cfg)
    ours = {
        "SEM_SEG_HEAD": ["THING_LABELS", "LOSS_TOP_K"],
        "RESNETS": ["OUTPUT_STRIDE", "STEM_TYPE"],
    }
    for part, keys in ours.items():
        for key in keys:
            cfg.MODEL[part].pop(key)
    assert {key: cfg.MODEL[key] for key in plain.MODEL} == plain.MODEL


def test_dumped_config_reads_as_it_was(write):
    cfg = load_config(BASE)
    again = load_config(write(cfg.dump()))
    # Tuples within a tuple come back as lists, of which Detectron2's defaults have one.
    again.MODEL.ROI_BOX_CASCADE_HEAD = cfg.MODEL.ROI_BOX_CASCADE_HEAD
    assert again == cfg


def test_class_counts_are_unset_where_a_config_says_nothing():
    things, stuff, boxes = (
        f"MODEL.{part}.NUM_CLASSES" for part in ("RETINANET", "SEM_SEG_HEAD", "ROI_HEADS")
    )
    own = load_config(BASE)
    assert all(class_count_is_unset(own, key) for key in (things, stuff, boxes))
    # COCO's counts may be meant, whatever Detectron2's defaults are.
    assert not class_count_is_unset(load_config(BASE, [things, 80]), things)
    for count in (3, 54):
        assert not class_count_is_unset(load_config(BASE, [stuff, count]), stuff)
    detectron2s = load_config(str(config_dir() / "toy" / "panoptic_fpn_toy.yaml"))
    assert all(class_count_is_unset(detectron2s, key) for key in (things, stuff, boxes))
    detectron2s.merge_from_list([boxes, 4, stuff, 5])
    assert not any(class_count_is_unset(detectron2s, key) for key in (stuff, boxes))


def test_file_base_and_overrides_are_merged_in_this_order(write):
    write("SOLVER: {BASE_LR: 0.1, GAMMA: 0.2, MOMENTUM: 0.3}", "base.yaml")
    path = write("_BASE_: base.yaml\nSOLVER: {GAMMA: 0.4, MOMENTUM: 0.5}")
    cfg = load_config(path, ["SOLVER.MOMENTUM", "0.6", "MODEL.SPATIALFLOW.FLOWS", "['reg_cls']"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA, cfg.SOLVER.MOMENTUM) == (0.1, 0.4, 0.6)
    assert cfg.MODEL.SPATIALFLOW.FLOWS == ["reg_cls"]
    assert not cfg.is_frozen()


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("MODEL.SPATIALFLOW.THING_NO", "MODEL.SPATIALFLOW.THING_ON"),
        ("MODEL.SPATIAL_FLOW", "MODEL.SPATIALFLOW"),
        ("SOLVER.BASE_LRR", "SOLVER.BASE_LR"),
    ],
)
def test_misspelt_key_names_the_closest(write, key, hint):
    text = "1"
    for part in reversed(key.split(".")):
        text = f"{{{part}: {text}}}"
    path = write(text)
    with pytest.raises(KeyError, match=rf"config\.yaml: .* key {key}; did you mean {hint}\?"):
        load_config(path)
    with pytest.raises(KeyError, match=rf"Command line: .* key {key}; did you mean {hint}\?"):
        load_config(BASE, [key, "1"])


def test_key_like_no_other_gets_no_hint(write):
    with pytest.raises(KeyError, match=r"there is no config key QQQQQQ\.'"):
        load_config(write("QQQQQQ: 1"))


@pytest.mark.parametrize("in_base", [False, True])
def test_yaml_that_would_run_code_is_refused_and_does_not_run(write, tmp_path, in_base):
    proof = tmp_path / "ran"
    path = write(f"VERSION: !!python/object/apply:os.mkdir ['{proof}']")
    if in_base:
        path = write("_BASE_: config.yaml", "child.yaml")
    with pytest.raises(ValueError, match="not a plain YAML mapping"):
        load_config(path)
    assert not proof.exists()


def test_override_that_would_run_code_is_a_string(tmp_path):
    proof = tmp_path / "ran"
    code = f"__import__('os').mkdir('{proof}')"
    weights = load_config(BASE, ["MODEL.WEIGHTS", code]).MODEL.WEIGHTS
    assert weights == code
    assert not proof.exists()


def test_missing_files_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml not found"):
        load_config(str(tmp_path / "gone.yaml"))
    path = write("_BASE_: parent.yaml")
    with pytest.raises(FileNotFoundError, match=r"config\.yaml: .*parent\.yaml not found"):
        load_config(path)


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "3", "word", "a: [", "a: b: c", b"\xff\xfe\x00", "_BASE_: 3"],
    ids=["empty", "list", "number", "word", "cut off", "colons", "binary", "base"],
)
def test_file_that_is_no_mapping_is_named(write, text):
    with pytest.raises(ValueError, match=r"config\.yaml is not a plain YAML mapping"):
        load_config(write(text))


def test_file_that_is_its_own_base_is_named(write):
    with pytest.raises(ValueError, match=r"config\.yaml is its own _BASE_"):
        load_config(write("_BASE_: config.yaml"))


def test_section_over_a_value_of_the_base_is_named(write):
    write("MODEL: 3", "base.yaml")
    with pytest.raises(ValueError, match=r"config\.yaml .*'MODEL'"):
        load_config(write("_BASE_: base.yaml\nMODEL: {WEIGHTS: x}"))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("SOLVER: {BASE_LR: fast}", "SOLVER.BASE_LR"),
        ("MODEL: {WEIGHTS: 3}", "MODEL.WEIGHTS"),
        ("MODEL: 3", "MODEL"),
        ("MODEL: {SPATIALFLOW: {FLOWS: reg_cls}}", "MODEL.SPATIALFLOW.FLOWS"),
        ("MODEL: {SPATIALFLOW: {NUM_STAGES: {CLS: four}}}", "MODEL.SPATIALFLOW.NUM_STAGES.CLS"),
    ],
)
def test_value_of_another_type_names_the_key(write, text, key):
    with pytest.raises(ValueError, match=rf"(?s)config\.yaml: .* key: {key}$"):
        load_config(write(text))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.BASE_LR"], "KEY VALUE pairs; 'SOLVER.BASE_LR' stands alone"),
        (["SOLVER.BASE_LR", "0.1", "MODEL.WEIGHTS"], "'MODEL.WEIGHTS' stands alone"),
        (["SOLVER.BASE_LR", "fast"], "Command line: .*SOLVER.BASE_LR"),
        (["SOLVER.MAX_ITER", "1e3"], "Command line: .*SOLVER.MAX_ITER"),
        (["_BASE_", "x.yaml"], "Command line: .*_BASE_"),
    ],
)
def test_odd_overrides_are_named(opts, message):
    with pytest.raises(ValueError, match=message):
        load_config(BASE, opts)
