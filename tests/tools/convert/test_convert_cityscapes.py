"""Cityscapes from its polygons, through Cityscapes' scripts, to Detectron2's names."""

import json
from functools import partial

import numpy as np
import pytest
from converted import map_first, problems_of_name, save_noise
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes_panoptic import register_all_cityscapes_panoptic
from PIL import Image

from spatialflow.cli import run_command
from spatialflow.data import dataset_categories, load_dataset_dicts
from spatialflow.data.targets import read_panoptic_png
from spatialflow.tools.convert import convert_cityscapes

main = partial(run_command, "convert")

CITIES = {"train": ("aachen", "ulm"), "val": ("munster",)}
HEIGHT, WIDTH = 20, 30
ID = "{}_000000_000019"


def box(label, x0, y0, x1, y1, **more):
    """A polygon over columns x0..x1 and rows y0..y1, both included: Pillow paints the border."""
    return {"label": label, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]], **more}


def polygons():
    objects = [
        box("sky", 0, 0, 29, 9),
        box("road", 0, 10, 29, 19),
        box("ego vehicle", 0, 18, 29, 19),
        box("car", 2, 8, 7, 13),
        box("car", 8, 8, 15, 13),
        box("persongroup", 20, 2, 25, 3),
        box("rider", 27, 8, 28, 12, deleted=1),
    ]
    return {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Layout of gtFine and leftImg8bit with the polygons alone; Detectron2's names point to it."""
    root = tmp_path / "cityscapes"
    for split, cities in CITIES.items():
        for city in cities:
            id_ = ID.format(city)
            save_noise(root / "leftImg8bit" / split / city / f"{id_}_leftImg8bit.png")
            annotation = root / "gtFine" / split / city / f"{id_}_gtFine_polygons.json"
            annotation.parent.mkdir(parents=True)
            annotation.write_text(json.dumps(polygons()))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names = [f"cityscapes_fine_panoptic_{split}" for split in CITIES]
    before = [
        (n, DatasetCatalog.pop(n), MetadataCatalog.get(n), MetadataCatalog.pop(n)) for n in names
    ]
    register_all_cityscapes_panoptic(str(tmp_path))
    yield root
    for name, load, metadata, _ in before:
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, load)
        MetadataCatalog[name] = metadata


def convert(root, splits=("train", "val")):
    return convert_cityscapes(str(root), splits, workers=1)


def test_the_checker_finds_nothing(root):
    datasets = convert(root)
    assert [d.name for d in datasets] == [f"cityscapes_fine_panoptic_{s}" for s in CITIES]
    for dataset in datasets:
        assert problems_of_name(dataset.name) == set()


def test_ids_are_those_of_cityscapes(root):
    convert(root)
    base = root / "gtFine" / "cityscapes_panoptic_val"
    ids = read_panoptic_png(str(base / f"{ID.format('munster')}_gtFine_panoptic.png"))
    expected = np.full((HEIGHT, WIDTH), 23)
    expected[10:] = 7
    expected[18:] = 0
    expected[8:14, 2:8] = 26000
    expected[8:14, 8:16] = 26001
    expected[2:4, 20:26] = 24
    np.testing.assert_array_equal(ids, expected)
    content = json.loads((root / "gtFine" / "cityscapes_panoptic_val.json").read_text())
    crowd = {s["id"]: s["iscrowd"] for s in content["annotations"][0]["segments_info"]}
    assert crowd == {7: 0, 23: 0, 24: 1, 26000: 0, 26001: 0}
    assert sorted(c["id"] for c in content["categories"]) == [
        7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33
    ]  # fmt: skip


def test_stuff_labels_have_the_19_classes(root):
    convert(root)
    path = root / "gtFine" / "train" / "ulm" / f"{ID.format('ulm')}_gtFine_labelTrainIds.png"
    labels = np.asarray(Image.open(path))
    assert set(np.unique(labels)) == {0, 10, 11, 13, 255}
    assert (labels[8:14, 2:16] == 13).all()
    assert (labels[18:] == 255).all()
    assert len(dataset_categories("cityscapes_fine_panoptic_train").stuff) == 19


def test_labels_for_the_evaluation_are_written_where_they_are_missing(root):
    folder = root / "gtFine" / "train"
    given = folder / "ulm" / f"{ID.format('ulm')}_gtFine_labelIds.png"
    given.write_bytes(b"from the download")
    convert(root)
    assert given.read_bytes() == b"from the download"
    written = folder / "aachen" / f"{ID.format('aachen')}_gtFine_labelIds.png"
    labels = np.asarray(Image.open(written))
    assert labels[[0, 15, 19, 9, 2], [0, 0, 0, 5, 20]].tolist() == [23, 7, 1, 26, 24]


def test_detectron2_loads_it(root):
    convert(root)
    dicts = DatasetCatalog.get("cityscapes_fine_panoptic_train")
    assert sorted(d["image_id"] for d in dicts) == [ID.format(c) for c in CITIES["train"]]
    assert {s["category_id"] for s in dicts[0]["segments_info"]} == {0, 10, 11, 13}


def test_training_gets_the_targets(root, cfg):
    convert(root)
    name = "cityscapes_fine_panoptic_train"
    assert [d["image_id"] for d in load_dataset_dicts(name)] == [
        ID.format(c) for c in CITIES["train"]
    ]
    sample = map_first(name, cfg)
    assert sample["instances"].gt_classes.tolist() == [2, 2]  # person, rider, car
    boxes = sample["instances"].gt_boxes.tensor.tolist()
    assert sorted(boxes) == [[2, 8, 8, 14], [8, 8, 16, 14]]
    assert sample["sem_seg"][[0, 15, 19, 9, 2], [0, 0, 0, 5, 20]].tolist() == [10, 0, 255, 13, 11]
    assert sample["crowd_mask"].sum() == 12


def test_instance_ids_that_are_there_are_used(root):
    """The downloads have them; json2instanceImg is for who has the polygons alone."""
    convert(root, ["val"])
    path = root / "gtFine" / "val" / "munster" / f"{ID.format('munster')}_gtFine_instanceIds.png"
    written = np.asarray(Image.open(path)).copy()
    written[written == 26001] = 26009
    Image.fromarray(written.astype(np.uint16)).save(path)
    (root / "gtFine" / "cityscapes_panoptic_val.json").unlink()
    for png in (root / "gtFine" / "cityscapes_panoptic_val").iterdir():
        png.unlink()
    convert(root, ["val"])
    content = json.loads((root / "gtFine" / "cityscapes_panoptic_val.json").read_text())
    ids = {s["id"] for s in content["annotations"][0]["segments_info"]}
    assert ids == {7, 23, 24, 26000, 26009}


def test_stuff_labels_that_were_removed_come_back(root):
    convert(root, ["val"])
    path = root / "gtFine" / "val" / "munster" / f"{ID.format('munster')}_gtFine_labelTrainIds.png"
    path.unlink()
    convert(root, ["val"])
    assert path.exists()


def test_the_command(root, capsys):
    main(["cityscapes", "--workers", "2"])
    out = capsys.readouterr().out
    assert (
        out == "cityscapes_fine_panoptic_train is ready.\ncityscapes_fine_panoptic_val is ready.\n"
    )


def test_a_root_that_detectron2_does_not_look_in(root, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
    main(["cityscapes", "--root", str(root), "--splits", "val", "--workers", "1"])
    out = capsys.readouterr().out
    assert "$DETECTRON2_DATASETS/cityscapes, which is elsewhere/cityscapes now" in out


def change_polygons(root, content):
    id_ = ID.format("munster")
    path = root / "gtFine" / "val" / "munster" / f"{id_}_gtFine_polygons.json"
    path.write_text(content)


def test_an_unknown_label_is_named(root):
    objects = {**polygons(), "objects": [box("unicorn", 0, 0, 5, 5)]}
    change_polygons(root, json.dumps(objects))
    message = r"munster_000000_000019_gtFine_polygons.json cannot be .*Label 'unicorn' not known"
    with pytest.raises(ValueError, match=message):
        convert(root, ["val"])
    assert not list((root / "gtFine" / "val" / "munster").glob("*.partial*"))


def test_a_damaged_annotation_is_named(root):
    change_polygons(root, "{")
    with pytest.raises(ValueError, match=r"gtFine_polygons.json cannot be converted"):
        convert(root, ["val"])


def test_missing_files_are_named(root):
    with pytest.raises(FileNotFoundError, match=r"no annotation .*gtFine/test/.*polygons.json"):
        convert(root, ["test"])
    id_ = ID.format("munster")
    (root / "leftImg8bit" / "val" / "munster" / f"{id_}_leftImg8bit.png").unlink()
    message = r"Image .*munster_000000_000019_leftImg8bit.png not found.*leftImg8bit_trainval"
    with pytest.raises(FileNotFoundError, match=message):
        convert(root, ["val"])
