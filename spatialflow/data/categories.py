"""Thing classes and stuff labels of a dataset: the one place where class numbers come from.

Legend: a *category* is a row of the dataset's JSON with a free id. A *thing class* 0..T-1 is what
the detection and mask heads predict. A *stuff label* 0..L-1 is what the stuff head predicts; label
0 is 'other', all things together, unless the dataset gives things labels of their own (Cityscapes,
where the stuff head predicts all 19 classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what only reads files shall not load torch
    from detectron2.data import Metadata

VOID_LABEL = 255
"""Stuff label of pixels that are not annotated."""


@dataclass(frozen=True)
class Category:
    """One category: id in the dataset, name, RGB colour, countable or not."""

    id: int
    name: str
    color: tuple[int, int, int]
    isthing: bool


OTHER = Category(id=-1, name="things", color=(82, 18, 128), isthing=True)
"""Stuff label 0: all things. No dataset has a category with its id."""


@dataclass(frozen=True)
class SegmentClass:
    """What a segment of a category is for the model.

    ``category_id`` is the thing class of a thing and the stuff label of stuff; ``stuff_label`` is
    the label of its pixels for the stuff head.
    """

    isthing: bool
    category_id: int
    stuff_label: int


@dataclass(frozen=True)
class Categories:
    """Classes of a dataset. ``things[c]`` has thing class c, ``stuff[l]`` has stuff label l."""

    things: tuple[Category, ...]
    stuff: tuple[Category, ...]

    @classmethod
    def from_json(cls, categories: Sequence[dict[str, Any]]) -> Categories:
        """Classes from the ``categories`` of a COCO panoptic JSON, in ascending category id.

        Raises:
            ValueError: no list, a missing or malformed field, or the same id twice.
        """
        if not isinstance(categories, list) or not categories:
            raise ValueError("'categories' must be a list with an entry for every class.")
        parsed = sorted((parse_category(c) for c in categories), key=lambda c: c.id)
        for a, b in zip(parsed, parsed[1:], strict=False):
            if a.id == b.id:
                raise ValueError(
                    f"Category id {a.id} is given twice, to {a.name!r} and {b.name!r}; "
                    "ids must differ."
                )
        return cls(
            things=tuple(c for c in parsed if c.isthing),
            stuff=(OTHER, *(c for c in parsed if not c.isthing)),
        )

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Categories:
        """Classes of a dataset registered with Detectron2, builtin or not.

        Detectron2 numbers classes in two ways: 'separated', things and stuff each on their own, or
        'standard', all in one range. For standard metadata the stuff labels are 'other' and the
        stuff classes, except for Cityscapes, where they are all the classes.

        Raises:
            ValueError: the metadata has no thing and stuff classes.
        """
        try:
            things = _from_id_map(metadata, "thing")
            stuff = _from_id_map(metadata, "stuff")
        except AttributeError as e:
            raise ValueError(
                f"Dataset {metadata.name} is not registered as a panoptic dataset: {e}"
            ) from e
        stuff = {i: c for i, c in stuff.items() if c.name != OTHER.name or i != 0}
        if metadata.get("evaluator_type") == "cityscapes_panoptic_seg":
            everything = {**things, **stuff}
            labels = tuple(everything[i] for i in sorted(everything))
        else:
            labels = (OTHER, *(stuff[i] for i in sorted(stuff)))
        return cls(things=tuple(things[i] for i in sorted(things)), stuff=labels)

    @cached_property
    def segment_classes(self) -> dict[int, SegmentClass]:
        """What a segment is for the model, by category id."""
        label_of = {c.id: label for label, c in enumerate(self.stuff)}
        classes = {
            c.id: SegmentClass(False, label_of[c.id], label_of[c.id])
            for c in self.stuff
            if not c.isthing
        }
        for i, c in enumerate(self.things):
            classes[c.id] = SegmentClass(
                True, i, label_of[c.id] if c.id in label_of else label_of[OTHER.id]
            )
        return classes

    @property
    def thing_labels_in_stuff(self) -> list[int]:
        """Stuff labels that stand for things: [0] or, on Cityscapes, those of the thing classes."""
        return [label for label, c in enumerate(self.stuff) if c.isthing]

    def as_json(self) -> list[dict[str, Any]]:
        """The dataset's categories as entries of ``categories`` in a panoptic JSON.

        They have ``id``, ``name``, ``isthing`` (0 or 1) and ``color``, and are in ascending id;
        'other' is not among them.
        """
        by_id = {c.id: c for c in (*self.things, *self.stuff)}
        return [
            {"id": i, "name": c.name, "isthing": int(c.isthing), "color": list(c.color)}
            for i, c in sorted(by_id.items())
            if i != OTHER.id
        ]

    def as_metadata(self) -> dict[str, Any]:
        """Metadata that names the model's classes and labels, for registration and drawing.

        The ids map into what the model predicts: ``thing_classes[c]`` is thing class c,
        ``stuff_classes[l]`` is stuff label l. Label 0, 'other', belongs to dataset id -1.
        """
        return {
            "thing_classes": [c.name for c in self.things],
            "thing_colors": [list(c.color) for c in self.things],
            "thing_dataset_id_to_contiguous_id": {c.id: i for i, c in enumerate(self.things)},
            "stuff_classes": [c.name for c in self.stuff],
            "stuff_colors": [list(c.color) for c in self.stuff],
            "stuff_dataset_id_to_contiguous_id": {c.id: i for i, c in enumerate(self.stuff)},
        }


def parse_category(category: Any) -> Category:
    """One entry of the ``categories`` of a COCO panoptic JSON.

    Raises:
        ValueError: it is no object, or a field is missing or malformed.
    """
    if not isinstance(category, dict):
        raise ValueError(f"Category {category!r} is no object with id, name and isthing.")
    missing = [k for k in ("id", "name", "isthing") if k not in category]
    if missing:
        raise ValueError(
            f"Category {category} has no {' and no '.join(missing)}; a panoptic category has "
            "id, name, isthing (0 or 1) and, if wanted, color."
        )
    id_, isthing = category["id"], category["isthing"]
    if not isinstance(id_, int) or id_ < 0:
        raise ValueError(f"Category {category}: the id must be an integer, 0 or more.")
    if isthing not in (0, 1):
        raise ValueError(f"Category {category}: isthing must be 0 or 1.")
    color = category.get("color") or _default_color(id_)
    try:
        red, green, blue = (int(v) for v in color)
    except (TypeError, ValueError, OverflowError) as e:
        raise ValueError(f"Category {category}: the color must be three numbers, RGB.") from e
    return Category(id_, str(category["name"]), (red, green, blue), bool(isthing))


def _default_color(id_: int) -> tuple[int, int, int]:
    # Odd multipliers permute 0..255, so that neighbouring ids get colours far apart.
    return (id_ * 67 + 60) % 256, (id_ * 113 + 120) % 256, (id_ * 197 + 180) % 256


def _from_id_map(metadata: Metadata, kind: str) -> dict[int, Category]:
    """Contiguous id in the metadata -> category, for kind 'thing' or 'stuff'."""
    names = getattr(metadata, f"{kind}_classes")
    colors = metadata.get(f"{kind}_colors") or [_default_color(i) for i in range(len(names))]
    return {
        i: Category(id_, names[i], tuple(colors[i]), kind == "thing")
        for id_, i in getattr(metadata, f"{kind}_dataset_id_to_contiguous_id").items()
    }
