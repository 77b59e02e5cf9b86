"""The evaluators that a dataset and a model get."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators

from spatialflow.data.register import is_unannotated
from spatialflow.modeling.panoptic import MergeSettings
from spatialflow.saved.raw_outputs import RawOutputWriter

from .cityscapes import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from .ground_truth import PanopticGroundTruth
from .instances import PanopticInstanceEvaluator
from .panoptic import PanopticEvaluator
from .semantic import PanopticSemSegEvaluator
from .unannotated import PanopticWriter, UnannotatedImages

logger = logging.getLogger(__name__)


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None, raw_dir: str | None = None
) -> DatasetEvaluators:
    """What can be measured of this model on this dataset.

    On a panoptic dataset: PQ with both segmentation branches, box AP always, mask AP with the
    thing branch, mIoU with the stuff branch; on Cityscapes mask AP and IoU are those of its own
    scripts. On a COCO instance dataset: box AP. On images without ground truth nothing, but what
    is predicted is written.

    Args:
        cfg: MODEL.SPATIALFLOW.THING_ON and STUFF_ON are read.
        dataset_name: a registered dataset.
        output_dir: where to write the predictions; None: they are not written.
        raw_dir: where to write what the merge starts from, with both segmentation branches.

    Raises:
        FileNotFoundError: the dataset's JSON is not there.
        ValueError: the dataset is of another kind, or its JSON is unsound.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind == "coco":
        return DatasetEvaluators([_coco_evaluator(dataset_name, ("bbox",), output_dir)])
    if kind not in ("coco_panoptic_seg", "cityscapes_panoptic_seg"):
        raise ValueError(
            f"Dataset {dataset_name} has evaluator_type {kind!r}; panoptic datasets "
            "(spatialflow.data.register_coco_panoptic) and COCO instance datasets can be evaluated."
        )
    things, stuff = cfg.MODEL.SPATIALFLOW.THING_ON, cfg.MODEL.SPATIALFLOW.STUFF_ON
    if is_unannotated(dataset_name):
        return _writers(cfg, dataset_name, output_dir, raw_dir)
    ground_truth = PanopticGroundTruth(dataset_name)
    evaluators: list[DatasetEvaluator] = []
    if things and stuff:
        evaluators.append(PanopticEvaluator(ground_truth, output_dir))
        if raw_dir is not None:
            settings = MergeSettings.from_config(cfg)
            evaluators.append(RawOutputWriter(raw_dir, ground_truth, settings))
    if kind == "cityscapes_panoptic_seg":
        evaluators.append(PanopticInstanceEvaluator(ground_truth, ("bbox",), output_dir))
        if things:
            evaluators.append(CityscapesInstanceEvaluator(ground_truth))
        if stuff:
            evaluators.append(CityscapesSemSegEvaluator(ground_truth))
        return DatasetEvaluators(evaluators)
    tasks = ("bbox", "segm") if things else ("bbox",)
    if MetadataCatalog.get(dataset_name).get("sem_seg_root"):
        # Detectron2's "separated" datasets: their things are those of an instances JSON.
        evaluators.append(_coco_evaluator(dataset_name, tasks, output_dir))
    else:
        evaluators.append(PanopticInstanceEvaluator(ground_truth, tasks, output_dir))
    if stuff:
        evaluators.append(PanopticSemSegEvaluator(ground_truth))
    return DatasetEvaluators(evaluators)


def _writers(
    cfg: CfgNode, dataset_name: str, output_dir: str | None, raw_dir: str | None
) -> DatasetEvaluators:
    if output_dir is None and raw_dir is None:
        raise ValueError(
            f"Dataset {dataset_name} has no ground truth, so nothing can be measured; set "
            "TEST.SAVE_PREDICTIONS True to write what is predicted."
        )
    images = UnannotatedImages(dataset_name)
    evaluators: list[DatasetEvaluator] = []
    if output_dir is not None:
        evaluators.append(PanopticWriter(images, output_dir))
    if raw_dir is not None:
        evaluators.append(RawOutputWriter(raw_dir, images, MergeSettings.from_config(cfg)))
    return DatasetEvaluators(evaluators)


def _coco_evaluator(
    dataset_name: str, tasks: tuple[str, ...], output_dir: str | None
) -> COCOEvaluator:
    return COCOEvaluator(dataset_name, tasks, output_dir=output_dir, use_fast_impl=False)
