"""Registering datasets, and what a config takes from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from .categories import Categories
from .class_counts import check_same_classes, set_class_counts
from .coco_panoptic import load_coco_panoptic, load_unannotated, read_categories
from .shards import is_sharded, is_url, shards_of

TOY_DATASETS = {
    f"toy_panoptic_{split}": (
        f"toy/{split}",
        f"toy/panoptic_{split}",
        f"toy/panoptic_{split}.json",
    )
    for split in ("train", "val")
}
"""Image folder, PNG folder and JSON of the toy scenes, by dataset name; registered when first
asked for."""

_PATH_KEYS = ("image_root", "panoptic_root", "panoptic_json")
_UNANNOTATED_PATH_KEYS = ("image_root", "images_json")
_CLASS_KEYS = (
    *(f"{kind}_{key}" for kind in ("thing", "stuff") for key in ("classes", "colors")),
    "thing_dataset_id_to_contiguous_id",
    "stuff_dataset_id_to_contiguous_id",
    "evaluator_type",
    "ignore_label",
    "label_divisor",
)
_ENTRIES = {
    "REGISTER": "[name, image folder, PNG folder, JSON]",
    "UNANNOTATED": "[name, image folder, JSON with 'images', dataset of the same classes]",
}
_TOY_HINT = "; make it with 'spatialflow toy'"
_SEPARATED_HINT = (
    "; make it with 'python datasets/prepare_panoptic_stuff.py', or use the name without _separated"
)


def datasets_root() -> str:
    """The folder that relative dataset paths are below: $DETECTRON2_DATASETS or ./datasets."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def register_coco_panoptic(
    name: str, image_root: str, panoptic_root: str, panoptic_json: str
) -> None:
    """Register a dataset in COCO panoptic format under a name for DATASETS.TRAIN and TEST.

    Relative paths are below :func:`datasets_root`. Registering the same again does nothing.

    Args:
        name: the dataset's name.
        image_root: folder of the images, or a pattern of tar files (:mod:`.shards`).
        panoptic_root: folder of the PNGs, id = R + 256 G + 65536 B, or such a pattern.
        panoptic_json: the JSON with images, annotations and categories.

    Raises:
        FileNotFoundError: a folder or the JSON is missing.
        ValueError: the JSON is no panoptic JSON, or the name is taken by something else.
    """
    paths = _below_root(_PATH_KEYS, (image_root, panoptic_root, panoptic_json))
    if name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        if all(metadata.get(k) == p for k, p in paths.items()):
            return
        taken = {k: metadata.get(k) for k in _PATH_KEYS}
        raise ValueError(f"Dataset name {name} is taken by {taken}; register {paths} otherwise.")
    _check_paths(name, paths)
    categories = read_categories(paths["panoptic_json"])
    MetadataCatalog.get(name).set(
        **paths,
        **categories.as_metadata(),
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
    )
    DatasetCatalog.register(name, partial(load_coco_panoptic, **paths, categories=categories))


def register_unannotated(name: str, image_root: str, images_json: str, like: str) -> None:
    """Register images without ground truth under a name for DATASETS.TEST.

    Args:
        name: the dataset's name.
        image_root: folder of the images.
        images_json: see :func:`spatialflow.data.coco_panoptic.load_unannotated`.
        like: a registered dataset of the same classes, whose own files need not be there.

    Raises:
        FileNotFoundError: the folder or the JSON is missing.
        ValueError: ``like`` is not registered, or the name is taken by something else.
    """
    paths = _below_root(_UNANNOTATED_PATH_KEYS, (image_root, images_json))
    if name in DatasetCatalog:
        if all(MetadataCatalog.get(name).get(k) == p for k, p in paths.items()):
            return
        raise ValueError(f"Dataset name {name} is taken; register {paths} otherwise.")
    classes = _metadata(like)
    _check_paths(name, paths)
    MetadataCatalog.get(name).set(
        **paths, **{k: v for k in _CLASS_KEYS if (v := classes.get(k)) is not None}
    )
    DatasetCatalog.register(name, lambda: load_dataset_dicts(name))


def is_unannotated(name: str) -> bool:
    """Whether a registered dataset has no ground truth."""
    return MetadataCatalog.get(name).get("images_json") is not None


def load_dataset_dicts(name: str) -> list[dict[str, Any]]:
    """Dataset dicts of a registered panoptic dataset, the same for every way of registration.

    Returns:
        Dicts as :mod:`spatialflow.data.coco_panoptic` describes them. Those of Detectron2's
        ``*_panoptic_separated`` names have ``annotations`` and ``sem_seg_file_name`` instead, those
        of images without ground truth nothing but the image.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: the name is not registered, or the JSON contradicts itself or the metadata.
    """
    metadata = _metadata(name)
    paths = _paths(metadata)
    _check_paths(name, paths)
    if "images_json" in paths:
        return load_unannotated(**paths, image_file=_image_file(metadata))
    if "sem_seg_root" in paths:
        try:
            return DatasetCatalog.get(name)
        except (KeyError, AssertionError) as e:
            raise ValueError(
                f"Dataset {name}: Detectron2 cannot match images, {metadata.json_file} and the "
                f"PNGs in {metadata.sem_seg_root}: {e}{_SEPARATED_HINT}."
            ) from e
    categories = Categories.from_metadata(metadata)
    return load_coco_panoptic(**paths, categories=categories, image_file=_image_file(metadata))


@dataclass(frozen=True)
class PanopticFiles:
    """Where a dataset in COCO panoptic format lies, and what its registration says about it.

    ``categories`` is None when they are those of the JSON. ``image_file`` is as for
    :func:`spatialflow.data.coco_panoptic.load_coco_panoptic`.
    """

    image_root: str
    panoptic_root: str
    panoptic_json: str
    categories: Categories | None = None
    image_file: Callable[[dict[str, Any]], str] = itemgetter("file_name")


def find_panoptic_files(name: str, entries: Sequence[Sequence[str]] = ()) -> PanopticFiles:
    """The files of a dataset by its name; none of them is looked at.

    Args:
        name: name of a registered dataset, of a toy dataset or of one of the entries.
        entries: DATASETS.REGISTER of a config.

    Raises:
        ValueError: the name is unknown, or is no panoptic dataset's.
    """
    described = {**TOY_DATASETS, **{n: tuple(paths) for n, *paths in entries}}
    if name in described:
        return PanopticFiles(**_below_root(_PATH_KEYS, described[name]))
    metadata = _metadata(name)
    paths = _paths(metadata)
    return PanopticFiles(
        image_root=paths["image_root"],
        panoptic_root=paths["panoptic_root"],
        panoptic_json=paths["panoptic_json"],
        categories=Categories.from_metadata(metadata),
        image_file=_image_file(metadata),
    )


def dataset_categories(name: str) -> Categories:
    """Classes of a registered panoptic dataset; ValueError when the name is not registered."""
    return Categories.from_metadata(_metadata(name))


def prepare_datasets(
    cfg: CfgNode, splits: Sequence[str] = ("TRAIN", "TEST"), check_files: bool = True
) -> None:
    """Register the datasets that a config uses and take the class counts from them.

    Those that DATASETS.REGISTER and UNANNOTATED describe and the toy scenes are registered. Class
    counts that are unset (``class_count_is_unset``) are set; the others are compared with every
    dataset.

    Args:
        cfg: not frozen; changed in place.
        splits: keys of ``cfg.DATASETS`` with the names of the datasets in use.
        check_files: look for the folders of all datasets and read those that are not trained on,
            so that a run does not fail at its first evaluation. Not needed to run a model on other
            images.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: a name is not registered, class counts or classes differ, or a dataset
            contradicts itself.
    """
    names = list(dict.fromkeys(name for split in splits for name in cfg.DATASETS[split]))
    unannotated = {e[0]: e for e in _entries(cfg, "UNANNOTATED") if e[0] in names}
    needed = {*names, *(like for *_, like in unannotated.values())}
    for name, *paths in [*register_entries(cfg), *([n, *p] for n, p in TOY_DATASETS.items())]:
        if name in needed:
            register_coco_panoptic(name, *paths)
    for name, entry in unannotated.items():
        if name in cfg.DATASETS.TRAIN:
            raise ValueError(f"Dataset {name} has no ground truth; it cannot be trained on.")
        register_unannotated(*entry)
    categories = {name: dataset_categories(name) for name in names}
    for name in names:
        if check_files:
            _check_paths(name, _paths(_metadata(name)))
        if check_files and name not in cfg.DATASETS.TRAIN:
            load_dataset_dicts(name)
        check_same_classes(name, names[0], categories)
    if names:
        set_class_counts(cfg, names[0], categories[names[0]])


def register_entries(cfg: CfgNode) -> list[list[str]]:
    """DATASETS.REGISTER of a config; ValueError when an entry is not four strings."""
    return _entries(cfg, "REGISTER")


def _entries(cfg: CfgNode, key: str) -> list[list[str]]:
    for entry in cfg.DATASETS[key]:
        if isinstance(entry, str) or [type(part) for part in entry] != [str] * 4:
            raise ValueError(f"DATASETS.{key}: each entry is {_ENTRIES[key]}, not {entry}.")
    return cfg.DATASETS[key]


def _below_root(keys: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
    """Paths by key, relative ones below :func:`datasets_root`."""
    return {
        k: p if is_url(p) else os.path.join(datasets_root(), p)
        for k, p in zip(keys, paths, strict=True)
    }


def _metadata(name: str) -> Metadata:
    if name in TOY_DATASETS and name not in DatasetCatalog:
        register_coco_panoptic(name, *TOY_DATASETS[name])
    if name not in DatasetCatalog:
        raise ValueError(
            f"Dataset {name} is not registered. Add [{name}, image folder, PNG folder, JSON] to "
            "DATASETS.REGISTER, or call spatialflow.data.register_coco_panoptic first."
        )
    return MetadataCatalog.get(name)


def _paths(metadata: Metadata) -> dict[str, str]:
    if metadata.get("images_json"):
        return {k: metadata.get(k) for k in _UNANNOTATED_PATH_KEYS}
    keys = list(_PATH_KEYS)
    keys += ["sem_seg_root", "json_file"] * bool(metadata.get("sem_seg_root"))
    paths = {k: metadata.get(k) for k in keys}
    if None in paths.values():
        raise ValueError(
            f"Dataset {metadata.name} is not registered as a panoptic dataset: its metadata has no "
            f"{next(k for k, p in paths.items() if p is None)}."
        )
    return paths


def _check_paths(name: str, paths: dict[str, str]) -> None:
    for key, path in paths.items():
        if not (shards_of(path) if is_sharded(path) else os.path.exists(path)):
            root = os.getenv("DETECTRON2_DATASETS")
            hint = _TOY_HINT if name in TOY_DATASETS else ""
            hint = _SEPARATED_HINT if key == "sem_seg_root" else hint
            raise FileNotFoundError(
                f"Dataset {name}: {key} {path} not found{hint}. Datasets are expected below "
                f"$DETECTRON2_DATASETS, which is {root or 'not set, so below ./datasets'}; "
                "datasets/README.md has their layout."
            )


def _image_file(metadata: Metadata) -> Callable[[dict[str, Any]], str]:
    is_cityscapes = metadata.evaluator_type == "cityscapes_panoptic_seg"
    return _cityscapes_image if is_cityscapes else itemgetter("file_name")


def _cityscapes_image(image: dict[str, Any]) -> str:
    # The file names that Cityscapes' own script writes into the JSON do not exist.
    city = image["id"].split("_")[0]
    return os.path.join(city, f"{image['id']}_leftImg8bit.png")
