"""The evaluators that a dataset and a model get."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators

from spatialflow.data.register import is_unannotated
from spatialflow.modeling.panoptic_model import PanopticModel

from .cityscapes import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from .ground_truth import PanopticGroundTruth
from .instances import PanopticInstanceEvaluator
from .panoptic import PanopticEvaluator
from .raw_outputs import RawOutputWriter
from .semantic import PanopticSemSegEvaluator
from .unannotated import PanopticWriter, UnannotatedImages

logger = logging.getLogger(__name__)

NO_MAP = (
    "the model makes no panoptic map: it has no mask or no stuff branch, or "
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED is False"
)


def build_evaluator(
    model: PanopticModel,
    dataset_name: str,
    output_dir: str | None = None,
    raw_dir: str | None = None,
) -> DatasetEvaluators:
    """What can be measured of this model on this dataset.

    On a panoptic dataset: PQ of a model that merges, box AP with a box branch, mask AP with a mask
    branch, mIoU with a stuff branch; on Cityscapes mask AP and IoU are those of its own scripts. On
    a COCO instance dataset: box AP, and mask AP if it has masks. On images without ground truth
    nothing, but what is predicted is written.

    Args:
        model: says which branches it has and how it merges.
        dataset_name: a registered dataset.
        output_dir: folder for the predictions; None: they are not written.
        raw_dir: folder for what the merge starts from; None: it is not written. A model without
            a merge has neither panoptic predictions nor this; a warning says so.

    Raises:
        FileNotFoundError: the dataset's JSON is missing.
        ValueError: the dataset is of another kind, or its JSON is unsound.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    tasks = ["bbox"] * model.predicts_boxes + ["segm"] * model.predicts_masks
    if kind == "coco":
        return DatasetEvaluators([_coco_evaluator(dataset_name, tasks, output_dir)])
    if kind not in ("coco_panoptic_seg", "cityscapes_panoptic_seg"):
        raise ValueError(
            f"Dataset {dataset_name} has evaluator_type {kind!r}; panoptic datasets "
            "(spatialflow.data.register_coco_panoptic) and COCO instance datasets can be evaluated."
        )
    if is_unannotated(dataset_name):
        return _writers(model, dataset_name, output_dir, raw_dir)
    ground_truth = PanopticGroundTruth(dataset_name)
    evaluators = _panoptic_evaluators(model, ground_truth, output_dir, raw_dir)
    if kind == "cityscapes_panoptic_seg":
        evaluators += _cityscapes_evaluators(model, ground_truth, output_dir)
        return DatasetEvaluators(evaluators)
    if tasks and MetadataCatalog.get(dataset_name).get("sem_seg_root"):
        # Detectron2's "separated" datasets: their things are those of an instances JSON.
        evaluators.append(_coco_evaluator(dataset_name, tasks, output_dir))
    elif tasks:
        evaluators.append(PanopticInstanceEvaluator(ground_truth, tasks, output_dir))
    if model.predicts_stuff:
        evaluators.append(PanopticSemSegEvaluator(ground_truth))
    return DatasetEvaluators(evaluators)


def _panoptic_evaluators(
    model: PanopticModel,
    ground_truth: PanopticGroundTruth,
    output_dir: str | None,
    raw_dir: str | None,
) -> list[DatasetEvaluator]:
    if model.merge is None:
        if output_dir is not None or raw_dir is not None:
            logger.warning(
                "%s: no panoptic predictions and no raw outputs are written, because %s.",
                ground_truth.name,
                NO_MAP,
            )
        return []
    evaluators: list[DatasetEvaluator] = [PanopticEvaluator(ground_truth, output_dir)]
    if raw_dir is not None:
        evaluators.append(RawOutputWriter(raw_dir, ground_truth, model.merge))
    return evaluators


def _cityscapes_evaluators(
    model: PanopticModel, ground_truth: PanopticGroundTruth, output_dir: str | None
) -> list[DatasetEvaluator]:
    evaluators: list[DatasetEvaluator] = []
    if model.predicts_boxes:
        evaluators.append(PanopticInstanceEvaluator(ground_truth, ("bbox",), output_dir))
    if model.predicts_masks:
        evaluators.append(CityscapesInstanceEvaluator(ground_truth))
    if model.predicts_stuff:
        evaluators.append(CityscapesSemSegEvaluator(ground_truth))
    return evaluators


def _writers(
    model: PanopticModel, dataset_name: str, output_dir: str | None, raw_dir: str | None
) -> DatasetEvaluators:
    if output_dir is None and raw_dir is None:
        raise ValueError(
            f"Dataset {dataset_name} has no ground truth, so nothing can be measured; set "
            "TEST.SAVE_PREDICTIONS True to write what is predicted."
        )
    if model.merge is None:
        raise ValueError(
            f"Dataset {dataset_name} has no ground truth, and nothing can be written, because "
            f"{NO_MAP}."
        )
    images = UnannotatedImages(dataset_name)
    evaluators: list[DatasetEvaluator] = []
    if output_dir is not None:
        evaluators.append(PanopticWriter(images, output_dir))
    if raw_dir is not None:
        evaluators.append(RawOutputWriter(raw_dir, images, model.merge))
    return DatasetEvaluators(evaluators)


def _coco_evaluator(
    dataset_name: str, tasks: Sequence[str], output_dir: str | None
) -> COCOEvaluator:
    evaluator = COCOEvaluator(
        dataset_name, tuple(tasks), output_dir=output_dir, use_fast_impl=False
    )
    if not all("segmentation" in a for a in evaluator._coco_api.anns.values()):
        evaluator._tasks = [task for task in tasks if task != "segm"]
    return evaluator
