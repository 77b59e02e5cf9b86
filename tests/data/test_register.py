import json
import pickle

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, SemSegEvaluator
from panoptic_folder import CATEGORIES, ROAD, write_cityscapes

import spatialflow.modeling  # noqa: F401  the models say which class counts they read
from spatialflow.config import add_spatialflow_config
from spatialflow.data import (
    dataset_categories,
    load_dataset_dicts,
    prepare_datasets,
    register_coco_panoptic,
)

THINGS, STUFF = "MODEL.RETINANET.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.NUM_CLASSES"


def _use(cfg, folder, name="own_train"):
    cfg.DATASETS.REGISTER = [*cfg.DATASETS.REGISTER, [name, *folder.paths]]
    cfg.DATASETS.TRAIN = (name,)


def test_a_registered_dataset_is_known_to_detectron2(folder):
    register_coco_panoptic("own_val", *folder.paths)
    metadata = MetadataCatalog.get("own_val")
    assert metadata.thing_classes == ["car", "person"]
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    paths = (metadata.image_root, metadata.panoptic_root, metadata.panoptic_json)
    assert paths == folder.paths
    assert DatasetCatalog.get("own_val") == load_dataset_dicts("own_val")
    assert len(load_dataset_dicts("own_val")) == 2


def test_detectron2s_own_evaluators_name_the_one_to_use(folder):
    register_coco_panoptic("own_val", *folder.paths)
    with pytest.raises(KeyError, match="000.png has no 'sem_seg_file_name'.*build_evaluator"):
        SemSegEvaluator("own_val")
    evaluator = COCOPanopticEvaluator("own_val")  # needs no more than the registration has
    evaluator.reset()


def test_dicts_stay_dicts_in_workers_and_detectron2s_tools(folder):
    register_coco_panoptic("own_val", *folder.paths)
    dicts = load_dataset_dicts("own_val")
    copied = pickle.loads(pickle.dumps(dicts))
    assert copied == dicts == json.loads(json.dumps(dicts))
    assert dicts[0].get("annotations") is None and "annotations" not in dicts[0]


def test_relative_paths_are_below_the_datasets_folder(folder, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder.root))
    register_coco_panoptic("own_val", "images", "panoptic", "panoptic.json")
    assert len(load_dataset_dicts("own_val")) == 2


def test_registering_again_is_fine_with_the_same_paths_only(folder):
    register_coco_panoptic("own_val", *folder.paths)
    register_coco_panoptic("own_val", *folder.paths)
    images, _, json_file = folder.paths
    with pytest.raises(ValueError, match="own_val is taken"):
        register_coco_panoptic("own_val", images, images, json_file)
    with pytest.raises(ValueError, match="coco_2017_val is taken"):
        register_coco_panoptic("coco_2017_val", *folder.paths)


@pytest.mark.parametrize(
    "index, key", list(enumerate(["image_root", "panoptic_root", "panoptic_json"]))
)
def test_a_missing_path_is_named_on_registration(folder, index, key):
    paths = list(folder.paths)
    paths[index] += "_gone"
    with pytest.raises(FileNotFoundError, match=f"own_val: {key} {paths[index]} not found"):
        register_coco_panoptic("own_val", *paths)
    assert "own_val" not in DatasetCatalog


def test_bad_categories_are_named_with_their_file(folder):
    folder.content["categories"].append(CATEGORIES[0])
    with pytest.raises(ValueError, match=r"panoptic.json: Category id 20 is given twice"):
        register_coco_panoptic("own_val", *folder.save().paths)


def test_class_counts_are_taken_from_the_dataset(cfg, folder):
    _use(cfg, folder)
    prepare_datasets(cfg)
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (2, 3)
    prepare_datasets(cfg)  # agrees with itself


@pytest.mark.parametrize("explicit", [{}, {"MODEL.ROI_HEADS.NUM_CLASSES": 7}])
def test_class_counts_of_detectron2s_models_are_taken_from_the_dataset(folder, explicit):
    cfg = get_cfg()
    add_spatialflow_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.DATASETS.TEST = ()
    cfg.merge_from_list([x for item in explicit.items() for x in item])
    _use(cfg, folder)
    if explicit:
        with pytest.raises(ValueError, match=r"ROI_HEADS\.NUM_CLASSES is set to 7, but .* has 2"):
            prepare_datasets(cfg)
    else:
        prepare_datasets(cfg)
        assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (2, 3)


def test_other_class_counts_in_the_config_are_refused(cfg, folder):
    _use(cfg, folder)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 54
    with pytest.raises(ValueError, match=f"{STUFF} is set to 54, but dataset own_train has 3"):
        prepare_datasets(cfg)


def _with_categories(folder, tmp_path, categories):
    """A JSON beside the folder's own, with other categories."""
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**folder.content, "categories": categories}))
    return [*folder.paths[:2], str(path)]


def test_datasets_of_different_class_counts_are_refused(cfg, folder, tmp_path):
    _use(cfg, folder)
    more = [*CATEGORIES, {"id": 30, "name": "bus", "isthing": 1}]
    cfg.DATASETS.REGISTER.append(["own_val", *_with_categories(folder, tmp_path, more)])
    cfg.DATASETS.TEST = ("own_val",)
    message = f"{THINGS} is 2 for dataset own_train, but 3 for dataset own_val"
    with pytest.raises(ValueError, match=message):
        prepare_datasets(cfg)


def test_datasets_whose_classes_are_swapped_are_refused(cfg, folder, tmp_path):
    _use(cfg, folder)
    names = {"car": "person", "person": "car"}
    swapped = [{**c, "name": names.get(c["name"], c["name"])} for c in CATEGORIES]
    cfg.DATASETS.REGISTER.append(["own_val", *_with_categories(folder, tmp_path, swapped)])
    cfg.DATASETS.TEST = ("own_val",)
    with pytest.raises(ValueError, match="things number 0 is 'car' in the first, 'person'"):
        prepare_datasets(cfg)


def test_a_dataset_without_things_is_refused(cfg, folder, tmp_path):
    stuff = [c for c in CATEGORIES if not c["isthing"]]
    cfg.DATASETS.REGISTER = [["own_train", *_with_categories(folder, tmp_path, stuff)]]
    cfg.DATASETS.TRAIN = ("own_train",)
    with pytest.raises(ValueError, match="own_train has no thing class"):
        prepare_datasets(cfg)


def test_an_unknown_name_says_how_to_register(cfg):
    cfg.DATASETS.TRAIN = ("my_streets",)
    with pytest.raises(ValueError, match="my_streets is not registered.*DATASETS.REGISTER"):
        prepare_datasets(cfg)


@pytest.mark.parametrize("entry", [["a", "b", "c"], ["a", "b", "c", 4], "abcd"])
def test_a_malformed_register_entry_is_named(cfg, entry):
    cfg.DATASETS.REGISTER = [entry]
    with pytest.raises(ValueError, match="DATASETS.REGISTER: each entry is .name, image folder"):
        prepare_datasets(cfg)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("coco_2017_val_panoptic", "datasets/README.md"),
        ("toy_panoptic_val", "spatialflow toy"),
    ],
)
def test_a_builtin_dataset_that_is_absent_says_where_it_is_expected(
    cfg, tmp_path, monkeypatch, name, hint
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setitem(vars(MetadataCatalog.get("coco_2017_val_panoptic")), "image_root", "gone")
    cfg.DATASETS.TEST = (name,)
    message = rf"{name}: image_root .* not found.*\$DETECTRON2_DATASETS, which is {tmp_path}"
    with pytest.raises(FileNotFoundError, match=message) as e:
        prepare_datasets(cfg)
    assert hint in str(e.value)


def test_class_counts_of_builtin_datasets_need_no_files(cfg, monkeypatch):
    monkeypatch.setitem(vars(MetadataCatalog.get("coco_2017_val_panoptic")), "image_root", "gone")
    cfg.DATASETS.TRAIN = ("coco_2017_val_panoptic",)
    cfg.DATASETS.TEST = ("coco_2017_val_panoptic_separated",)
    prepare_datasets(cfg, check_files=False)
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (80, 54)


def test_a_broken_test_set_is_named_before_training(cfg, folder):
    _use(cfg, folder)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("own_train",)
    (folder.root / "images" / "001.png").unlink()
    prepare_datasets(cfg, check_files=False)
    with pytest.raises(FileNotFoundError, match="Image missing in .*: 001.png"):
        prepare_datasets(cfg)


def test_splits_that_are_not_in_use_need_not_be_there(cfg, folder):
    _use(cfg, folder)
    cfg.DATASETS.TEST = ("gone",)
    cfg.DATASETS.REGISTER.append(["gone", "a", "b", "c"])
    prepare_datasets(cfg, splits=("TRAIN",))
    with pytest.raises(FileNotFoundError, match="gone"):
        prepare_datasets(cfg)


def test_cityscapes_needs_its_labels_of_things(cfg):
    cfg.DATASETS.TRAIN = ("cityscapes_fine_panoptic_val",)
    with pytest.raises(ValueError, match=r"SEM_SEG_HEAD.THING_LABELS is \[0\].*\[11, 12, .*, 18\]"):
        prepare_datasets(cfg, check_files=False)
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 0
    cfg.MODEL.SEM_SEG_HEAD.THING_LABELS = list(range(11, 19))
    prepare_datasets(cfg, check_files=False)
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (8, 19)


def test_cityscapes_is_read_from_its_panoptic_json_alone(tmp_path, monkeypatch):
    paths = write_cityscapes(tmp_path)
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    for key, path in zip(("image_root", "panoptic_root", "panoptic_json"), paths, strict=True):
        monkeypatch.setitem(vars(metadata), key, path)
    (loaded,) = load_dataset_dicts("cityscapes_fine_panoptic_val")
    assert loaded["file_name"].endswith("/ulm/ulm_000000_000019_leftImg8bit.png")
    assert (loaded["image_id"], loaded["width"]) == ("ulm_000000_000019", 6)
    road, car = loaded["segments_info"]
    assert (road["isthing"], road["category_id"], road["stuff_label"]) == (False, 0, 0)
    assert (car["isthing"], car["category_id"], car["stuff_label"]) == (True, 2, 13)


def test_an_instance_dataset_is_refused(cfg):
    cfg.DATASETS.TRAIN = ("coco_2017_val",)
    with pytest.raises(ValueError, match="coco_2017_val is not registered as a panoptic dataset"):
        prepare_datasets(cfg, check_files=False)


def test_categories_of_a_registered_dataset(folder):
    register_coco_panoptic("own_val", *folder.paths)
    assert dataset_categories("own_val").segment_classes[ROAD].stuff_label == 1
