"""Cityscapes' own numbers, by its own scripts: instance AP, and IoU of classes and categories.

Detectron2's evaluators of Cityscapes run the same scripts, but Detectron2's main imports them under
a name that exists nowhere else, they number the classes of the instance datasets, and they need a
folder that all processes share. Here each process hands its images to the scripts one by one and
keeps what they count; the counts are put together at the end.
"""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as instance_script
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as pixel_script
from cityscapesscripts.evaluation.instances2dict import instances2dict
from cityscapesscripts.helpers.labels import category2labels, id2label
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm

from spatialflow.data.file_names import file_below
from spatialflow.utils.files import write_image

from .ground_truth import PanopticGroundTruth


class _NumpyOfTheScripts:
    """numpy as the scripts were written for.

    numpy 2.4 dropped ``in1d``; the scripts give its result the shape of the first argument, which
    that of ``isin`` has already. Counts became numpy's integers, which the scripts' JSON refuses.
    """

    in1d = staticmethod(np.isin)

    @staticmethod
    def count_nonzero(pixels: np.ndarray) -> int:
        return int(np.count_nonzero(pixels))

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


instance_script.np = pixel_script.np = _NumpyOfTheScripts()


def write_instances(
    folder: str, image_id: str, instances: Instances, label_ids: Sequence[int]
) -> str:
    """Write instances as Cityscapes takes them: a text file that names a PNG for each mask.

    Args:
        folder: folder to write to.
        image_id: ``<city>_<sequence>_<frame>``.
        instances: on any device, with ``pred_masks`` (N, H, W) bool, ``pred_classes``, ``scores``.
        label_ids: Cityscapes' label id of each thing class.

    Returns:
        Path of the text file.
    """
    lines = []
    found = zip(
        instances.pred_masks,
        instances.pred_classes.tolist(),
        instances.scores.tolist(),
        strict=True,
    )
    for i, (mask, class_id, score) in enumerate(found):
        name = f"{image_id}_pred_{i}.png"
        write_image(file_below(folder, name), mask.cpu().numpy().astype(np.uint8) * 255)
        lines.append(f"{name} {label_ids[class_id]} {score}\n")
    path = file_below(folder, f"{image_id}_pred.txt")
    with open(path, "w") as f:
        f.writelines(lines)
    return path


def write_labels(folder: str, image_id: str, labels: np.ndarray, label_ids: Sequence[int]) -> str:
    """Write (H, W) stuff labels as a PNG of Cityscapes' label ids and return its path.

    Args:
        folder, image_id: see :func:`write_instances`.
        labels: 0 to S - 1.
        label_ids: Cityscapes' label id of each of the S stuff labels.
    """
    path = file_below(folder, f"{image_id}_pred.png")
    write_image(path, np.array(label_ids, np.uint8)[labels])
    return path


class CityscapesInstanceEvaluator(DatasetEvaluator):
    """AP of the masks by ``evalInstanceLevelSemanticLabeling``."""

    def __init__(self, ground_truth: PanopticGroundTruth):
        """
        Args:
            ground_truth: ground truth of a Cityscapes dataset.

        Raises:
            FileNotFoundError: an ``instanceIds`` image is missing.
        """
        self._truth_files = _label_images(ground_truth, "instanceIds")
        self._label_ids = [c.id for c in ground_truth.categories.things]
        self._args = copy.copy(instance_script.args)
        self._args.quiet = True
        instance_script.setInstanceLabels(self._args)
        self.reset()

    def reset(self) -> None:
        self._matches: dict[str, dict] = {}

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Match a batch; inputs have ``image_id``, outputs ``instances``."""
        for image, output in zip(inputs, outputs, strict=True):
            truth = self._truth_files[image["image_id"]]
            with tempfile.TemporaryDirectory() as folder:
                self._args.predictionPath = os.path.abspath(folder)
                written = write_instances(
                    self._args.predictionPath,
                    image["image_id"],
                    output["instances"],
                    self._label_ids,
                )
                self._matches |= instance_script.matchGtWithPreds(
                    [written], [truth], instances2dict([truth]), self._args
                )

    def evaluate(self) -> dict | None:
        """Returns: in the main process ``{"segm": {"AP", "AP50", "AP-<class>"}}``, in percent."""
        parts = comm.gather(self._matches)
        if not comm.is_main_process():
            return None
        matches = {key: match for part in parts for key, match in part.items()}
        with warnings.catch_warnings():  # about classes that do not occur
            warnings.simplefilter("ignore", RuntimeWarning)
            aps = instance_script.evaluateMatches(matches, self._args)
            averages = instance_script.computeAverages(aps, self._args)
        metrics = {"AP": averages["allAp"], "AP50": averages["allAp50%"]}
        metrics |= {f"AP-{name}": v["ap"] for name, v in averages["classes"].items()}
        return {"segm": _in_percent(metrics)}


class CityscapesSemSegEvaluator(DatasetEvaluator):
    """IoU and iIoU of classes and categories by ``evalPixelLevelSemanticLabeling``."""

    def __init__(self, ground_truth: PanopticGroundTruth):
        """
        Args:
            ground_truth: ground truth of a Cityscapes dataset; its stuff labels are all classes.

        Raises:
            FileNotFoundError: a ``labelIds`` or ``instanceIds`` image is missing.
        """
        self._truth_files = _label_images(ground_truth, "labelIds")
        _label_images(ground_truth, "instanceIds")  # the script reads these too
        self._label_ids = [c.id for c in ground_truth.categories.stuff]
        self._args = copy.copy(pixel_script.args)
        self._args.quiet = True
        self.reset()

    def reset(self) -> None:
        self._pixels = pixel_script.generateMatrix(self._args)
        self._instances = pixel_script.generateInstanceStats(self._args)

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Count a batch; inputs have ``image_id``, outputs ``sem_seg``, scores (S, H, W)."""
        for image, output in zip(inputs, outputs, strict=True):
            labels = output["sem_seg"].argmax(dim=0).cpu().numpy()
            with tempfile.TemporaryDirectory() as folder:
                pixel_script.evaluatePair(
                    write_labels(folder, image["image_id"], labels, self._label_ids),
                    self._truth_files[image["image_id"]],
                    self._pixels,
                    self._instances,
                    {},
                    self._args,
                )

    def evaluate(self) -> dict | None:
        """Merge the counts of all processes and average.

        Returns:
            In the main process ``{"sem_seg": metrics}`` in percent: ``IoU`` and ``iIoU`` over
            classes, ``IoU_sup`` and ``iIoU_sup`` over categories, and ``IoU-<class>``; NaN for what
            does not occur.
        """
        parts = comm.gather((self._pixels, self._instances))
        if not comm.is_main_process():
            return None
        pixels = sum(p for p, _ in parts)
        instances = _added([i for _, i in parts])
        args = self._args
        scores = {
            "IoU": {i: pixel_script.getIouScoreForLabel(i, pixels, args) for i in args.evalLabels},
            "iIoU": {
                i: pixel_script.getInstanceIouScoreForLabel(i, pixels, instances, args)
                for i in args.evalLabels
            },
            "IoU_sup": {
                c: pixel_script.getIouScoreForCategory(c, pixels, args) for c in category2labels
            },
            "iIoU_sup": {
                c: pixel_script.getInstanceIouScoreForCategory(c, pixels, instances, args)
                for c in category2labels
            },
        }
        metrics = {name: pixel_script.getScoreAverage(s, args) for name, s in scores.items()}
        metrics |= {f"IoU-{id2label[i].name}": scores["IoU"][i] for i in self._label_ids}
        return {"sem_seg": _in_percent(metrics)}


def _label_images(ground_truth: PanopticGroundTruth, kind: str) -> dict[Hashable, str]:
    """Path of the label image of each image; its absence would end the scripts with an exit."""
    root = MetadataCatalog.get(ground_truth.name).gt_dir
    paths = {
        i: file_below(root, os.path.join(str(i).split("_")[0], f"{i}_gtFine_{kind}.png"))
        for i in ground_truth.png_names
    }
    missing = [path for path in paths.values() if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"Cityscapes' scripts need {missing[0]}: file not found ({len(missing)} of "
            f"{len(paths)} such images are missing). They come with gtFine_trainvaltest.zip."
        )
    return paths


def _added(parts: Sequence[Mapping]) -> dict:
    """Nested dicts of numbers, added; anything else in them is the same in all parts."""
    added = dict(parts[0])
    for key, value in added.items():
        if isinstance(value, Mapping):
            added[key] = _added([part[key] for part in parts])
        elif isinstance(value, float):
            added[key] = sum(part[key] for part in parts)
    return added


def _in_percent(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: 100 * float(value) for key, value in metrics.items()}
