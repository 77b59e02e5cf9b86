import pytest
from detectron2.data import Metadata, MetadataCatalog
from panoptic_folder import CAR, CATEGORIES, PERSON, ROAD, SKY

from spatialflow.data.categories import OTHER, Categories, SegmentClass


def test_classes_are_numbered_by_ascending_id_with_gaps_and_id_0():
    categories = Categories.from_json(CATEGORIES)
    assert [c.name for c in categories.things] == ["car", "person"]
    assert [c.name for c in categories.stuff] == ["things", "road", "sky"]
    assert categories.segment_classes == {
        CAR: SegmentClass(isthing=True, category_id=0, stuff_label=0),
        PERSON: SegmentClass(isthing=True, category_id=1, stuff_label=0),
        ROAD: SegmentClass(isthing=False, category_id=1, stuff_label=1),
        SKY: SegmentClass(isthing=False, category_id=2, stuff_label=2),
    }
    assert categories.thing_labels_in_stuff == [0]


def test_metadata_describes_the_same_classes():
    categories = Categories.from_json(CATEGORIES)
    metadata = categories.as_metadata()
    assert metadata["thing_dataset_id_to_contiguous_id"] == {CAR: 0, PERSON: 1}
    assert metadata["stuff_dataset_id_to_contiguous_id"] == {OTHER.id: 0, ROAD: 1, SKY: 2}
    assert metadata["stuff_classes"] == ["things", "road", "sky"]
    assert metadata["thing_colors"] == [[4, 5, 6], [10, 11, 12]]
    assert Categories.from_metadata(Metadata(name="x", **metadata)) == categories


def test_missing_colors_are_made_up_and_differ():
    json_categories = [{"id": i, "name": str(i), "isthing": 1} for i in range(200)]
    colors = {c.color for c in Categories.from_json(json_categories).things}
    assert len(colors) == 200


@pytest.mark.parametrize(
    "categories, message",
    [
        ([], "'categories'"),
        ([{"id": 1, "name": "a"}], "no isthing"),
        ([{"name": "a", "isthing": 1}], "no id"),
        ([{"id": "1", "name": "a", "isthing": 1}], "integer"),
        ([{"id": -1, "name": "a", "isthing": 1}], "integer"),
        ([{"id": 1, "name": "a", "isthing": 2}], "isthing must be 0 or 1"),
        (
            [{"id": 1, "name": "a", "isthing": 1}, {"id": 1, "name": "b", "isthing": 0}],
            "id 1 is given twice, to 'a' and 'b'",
        ),
    ],
)
def test_bad_categories_are_named(categories, message):
    with pytest.raises(ValueError, match=message):
        Categories.from_json(categories)


@pytest.mark.parametrize("name", ["coco_2017_val_panoptic", "coco_2017_val_panoptic_separated"])
def test_both_builtin_kinds_of_coco_give_80_things_and_54_stuff_labels(name):
    categories = Categories.from_metadata(MetadataCatalog.get(name))
    assert (len(categories.things), len(categories.stuff)) == (80, 54)
    assert categories.things[79].id == 90
    assert [categories.stuff[i].id for i in (0, 1, 53)] == [OTHER.id, 92, 200]
    assert categories.segment_classes[90] == SegmentClass(True, 79, 0)
    assert categories.segment_classes[92] == SegmentClass(False, 1, 1)
    assert categories.thing_labels_in_stuff == [0]


def test_cityscapes_stuff_labels_are_all_19_classes():
    categories = Categories.from_metadata(MetadataCatalog.get("cityscapes_fine_panoptic_val"))
    assert (len(categories.things), len(categories.stuff)) == (8, 19)
    assert categories.segment_classes[26] == SegmentClass(True, 2, 13)  # car
    assert categories.segment_classes[7] == SegmentClass(False, 0, 0)  # road
    assert categories.thing_labels_in_stuff == list(range(11, 19))
    assert len(categories.as_metadata()["stuff_dataset_id_to_contiguous_id"]) == 19


def test_a_dataset_that_is_not_panoptic_is_named():
    with pytest.raises(ValueError, match="coco_2017_val is not registered as a panoptic"):
        Categories.from_metadata(MetadataCatalog.get("coco_2017_val"))
