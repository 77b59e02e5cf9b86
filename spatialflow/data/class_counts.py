"""The class counts of a config, and the classes that its datasets must share."""

from __future__ import annotations

from detectron2.config import CfgNode

from spatialflow.config import CLASS_COUNT_UNSET, class_count_is_unset, read_key

from .categories import Categories

_CLASS_COUNT_KEYS = {
    "MODEL.RETINANET.NUM_CLASSES": "things",
    "MODEL.ROI_HEADS.NUM_CLASSES": "things",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "stuff",
}


def check_same_classes(name: str, first: str, categories: dict[str, Categories]) -> None:
    """Raise a ValueError when two datasets, by name in ``categories``, have other classes."""
    for key, kind in _CLASS_COUNT_KEYS.items():
        a, b = ([plain_name(c.name) for c in getattr(categories[n], kind)] for n in (first, name))
        if len(a) != len(b):
            raise ValueError(
                f"{key} is {len(a)} for dataset {first}, but {len(b)} for dataset {name}; train "
                "and test on datasets of the same classes."
            )
        if a != b:
            i = next(i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1])
            raise ValueError(
                f"Datasets {first} and {name} have different classes: {kind} number {i} is "
                f"{a[i]!r} in the first, {b[i]!r} in the second."
            )


def plain_name(name: str) -> str:
    """A class name to compare: Detectron2's separated metadata of COCO leaves endings out."""
    return name.replace("-other", "").replace("-merged", "")


def set_class_counts(cfg: CfgNode, name: str, categories: Categories) -> None:
    """Set the class counts that are unset, and compare the others.

    Args:
        cfg: not frozen; changed in place.
        name: name of the dataset, for the messages.
        categories: its classes.

    Raises:
        ValueError: a count or MODEL.SEM_SEG_HEAD.THING_LABELS is set to something else, or the
            dataset has no thing.
    """
    if not categories.things:
        raise ValueError(f"Dataset {name} has no thing class; detection needs at least one.")
    for key, kind in _CLASS_COUNT_KEYS.items():
        count = len(getattr(categories, kind))
        given = read_key(cfg, key)
        if given != count and not class_count_is_unset(cfg, key):
            raise ValueError(
                f"{key} is set to {given}, but dataset {name} has {count}. Leave the key out or at "
                f"{CLASS_COUNT_UNSET}, then it is taken from the dataset."
            )
        cfg.merge_from_list([key, count])
    given, needed = cfg.MODEL.SEM_SEG_HEAD.THING_LABELS, categories.thing_labels_in_stuff
    if list(given) != needed:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.THING_LABELS is {given}, but the stuff labels of things "
            f"in dataset {name} are {needed}; set the key to these."
        )
