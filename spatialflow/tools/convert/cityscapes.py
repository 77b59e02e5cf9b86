"""Cityscapes: what Detectron2's ``cityscapes_fine_panoptic_*`` read, by Cityscapes' own scripts."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import labels
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image

from spatialflow.data.categories import Categories
from spatialflow.data.targets import read_panoptic_png
from spatialflow.utils.files import read_json, replacing

from .writer import Converted, Dataset, Job, require_files, write_dataset

SPLITS = ("train", "val")
_POLYGONS = "_gtFine_polygons.json"
_INSTANCES, _LABELS, _TRAIN_IDS = (
    f"_gtFine_{kind}.png" for kind in ("instanceIds", "labelIds", "labelTrainIds")
)
_ADVICE = (
    "Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com in "
    "the folder that --root names; see datasets/README.md."
)


def convert_cityscapes(root: str, splits: Sequence[str], workers: int) -> list[Dataset]:
    """Write the panoptic PNGs and JSONs below ``gtFine``, and the stuff labels beside the polygons.

    The stuff labels, ``*_labelTrainIds.png``, have the 19 classes of the evaluation and 255.
    ``*_instanceIds.png`` and ``*_labelIds.png``, which evaluation needs, come with the download
    and are written where they are missing.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: a polygon file cannot be read.
    """
    datasets = []
    for split in splits:
        folder = os.path.join(root, "gtFine", f"cityscapes_panoptic_{split}")
        dataset = Dataset(
            f"cityscapes_fine_panoptic_{split}",
            os.path.join(root, "leftImg8bit", split),
            folder,
            f"{folder}.json",
        )
        write_dataset(dataset, _categories(), _jobs(root, split), _convert, workers)
        datasets.append(dataset)
    return datasets


def _categories() -> Categories:
    return Categories.from_json(
        [
            {"id": c.id, "name": c.name, "isthing": int(c.hasInstances), "color": c.color}
            for c in labels
            if not c.ignoreInEval
        ]
    )


def _jobs(root: str, split: str) -> list[Job]:
    pattern = os.path.join(root, "gtFine", split, "*", f"*{_POLYGONS}")
    polygons = sorted(glob.glob(pattern))
    if not polygons:
        raise FileNotFoundError(f"There is no annotation {pattern}. {_ADVICE}")
    stems = [p.removesuffix(_POLYGONS) for p in polygons]
    names = [os.path.relpath(stem, os.path.join(root, "gtFine")) for stem in stems]
    images = [os.path.join(root, "leftImg8bit", f"{name}_leftImg8bit.png") for name in names]
    require_files(images, "Image", _ADVICE)
    return [
        Job(
            png=f"{os.path.basename(stem)}_gtFine_panoptic.png",
            sources=(stem + _POLYGONS,),
            details={"stem": stem, "split": split},
            products=(stem + _TRAIN_IDS,),
        )
        for stem in stems
    ]


def _convert(job: Job) -> Converted:
    (polygons,), stem = job.sources, job.details["stem"]
    with _errors_of(polygons):
        annotation = Annotation()
        annotation.fromJsonFile(polygons)
        if not os.path.isfile(stem + _INSTANCES):
            # What it returns has a mode that Pillow no longer saves.
            instances = np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)
            _save(Image.fromarray(instances), stem + _INSTANCES)
        if not os.path.isfile(stem + _LABELS):
            _save(createLabelImage(annotation, "ids"), stem + _LABELS)
        _save(createLabelImage(annotation, "trainIds"), stem + _TRAIN_IDS)
        return _panoptic(stem + _INSTANCES, job.details["split"])


def _save(image: Image.Image, png: str) -> None:
    with replacing(png) as path:
        image.save(path, format="PNG")


def _panoptic(instances: str, split: str) -> Converted:
    """What Cityscapes' script makes of a folder that has one image."""
    with tempfile.TemporaryDirectory() as folder:
        city = os.path.join(folder, split, "city")
        os.makedirs(city)
        shutil.copy(instances, city)
        convert2panoptic(folder, folder, setNames=[split])
        base = os.path.join(folder, f"cityscapes_panoptic_{split}")
        content = read_json(f"{base}.json")
        (image,), (annotation,) = content["images"], content["annotations"]
        ids = read_panoptic_png(os.path.join(base, annotation["file_name"]))
    return Converted(image, ids, annotation["segments_info"])


@contextlib.contextmanager
def _errors_of(polygons: str) -> Iterator[None]:
    """What Cityscapes' functions print is kept back; that they exit becomes a ValueError."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except (SystemExit, Exception) as e:
        said = printed.getvalue().strip().partition("\n")[0]
        raise ValueError(f"{polygons} cannot be converted, {type(e).__name__}: {said or e}") from e
