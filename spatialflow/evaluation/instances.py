"""Box and mask AP by COCO's evaluation, with ground truth from the panoptic PNGs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .ground_truth import AnnotatedImage, PanopticGroundTruth
from .scratch import scratch_dataset


def coco_annotations(
    image_id: Hashable, truth: AnnotatedImage, thing_ids: frozenset[int]
) -> list[dict]:
    """COCO annotations of the things of one image.

    Args:
        image_id: id of the image.
        truth: its panoptic ground truth.
        thing_ids: dataset category ids of the thing classes.

    Returns:
        One dict a thing segment, crowd regions included: ``image_id``, ``category_id``,
        ``iscrowd``, ``segmentation`` (RLE), and ``area`` (pixels) and ``bbox`` (x, y, width,
        height, tight around the mask), both counted from the PNG. Without ``id``.
    """
    things = [s for s in truth.segments if s["category_id"] in thing_ids]
    if not things:
        return []
    ids = np.array([s["id"] for s in things], dtype=truth.id_map.dtype)
    # (N, W, H) in memory is (H, W, N) in Fortran order, which the encoder takes without a copy.
    masks = np.ascontiguousarray(truth.id_map.T) == ids[:, None, None]
    rles = mask_util.encode(masks.view(np.uint8).T)
    return [
        {
            "image_id": image_id,
            "category_id": segment["category_id"],
            "iscrowd": int(segment.get("iscrowd", 0)),
            "segmentation": rle,
            "area": int(area),
            "bbox": box.tolist(),
        }
        for segment, rle, area, box in zip(
            things, rles, mask_util.area(rles), mask_util.toBbox(rles), strict=True
        )
    ]


class PanopticInstanceEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator on instances taken from the panoptic ground truth.

    The annotations are derived image by image, in the process that has the image, so that no
    instances JSON is needed and no conversion of the whole dataset comes first.
    """

    def __init__(
        self,
        ground_truth: PanopticGroundTruth,
        tasks: Sequence[str],
        output_dir: str | None = None,
    ):
        """
        Args:
            ground_truth: ground truth of the dataset to evaluate on.
            tasks: those of "bbox" and "segm" that the model predicts.
            output_dir: folder for the instances that Detectron2 writes; None: it does not.
        """
        self._ground_truth = ground_truth
        things = ground_truth.categories.things
        self._coco_categories = [{"id": c.id, "name": c.name} for c in things]
        self._thing_ids = frozenset(c.id for c in things)
        with tempfile.TemporaryDirectory() as folder:
            empty = os.path.join(folder, "instances.json")
            with open(empty, "w") as f:
                json.dump(self._coco_dataset([], []), f)
            with scratch_dataset(
                ground_truth.name,
                json_file=empty,
                thing_classes=[c.name for c in things],
                thing_dataset_id_to_contiguous_id={c.id: i for i, c in enumerate(things)},
            ) as name:
                super().__init__(name, tuple(tasks), output_dir=output_dir, use_fast_impl=False)

    def reset(self) -> None:
        super().reset()
        self._images: list[dict] = []
        self._annotations: list[dict] = []
        self._coco_api = COCO()

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        super().process(inputs, outputs)
        for image in inputs:
            truth = self._ground_truth.load(image["image_id"])
            height, width = truth.id_map.shape
            self._images.append({"id": image["image_id"], "height": height, "width": width})
            self._annotations += coco_annotations(image["image_id"], truth, self._thing_ids)

    def evaluate(self, img_ids: Sequence[Hashable] | None = None) -> dict:
        """Merge the ground truth of all processes, then evaluate as Detectron2 does.

        Predictions and ground truth are not kept: evaluate once for each ``reset``.

        Returns:
            In the main process the metrics of each task, in percent; NaN without predictions.
        """
        comm.synchronize()
        images = [i for part in comm.gather(self._images) for i in part]
        annotations = [a for part in comm.gather(self._annotations) for a in part]
        if comm.is_main_process():
            self._coco_api = COCO()
            self._coco_api.dataset = self._coco_dataset(images, annotations)
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco_api.createIndex()
        try:
            return super().evaluate(img_ids)
        finally:
            self.reset()

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Metrics of a task; its matches, gigabytes on COCO, end before the next task."""
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is not None:
            vars(coco_eval).clear()
        return results

    def _coco_dataset(self, images: list[dict], annotations: list[dict]) -> dict:
        # COCO's evaluation takes annotation id 0 for "no match".
        numbered = [{**a, "id": i} for i, a in enumerate(annotations, start=1)]
        return {
            "info": {},
            "images": images,
            "annotations": numbered,
            "categories": self._coco_categories,
        }
