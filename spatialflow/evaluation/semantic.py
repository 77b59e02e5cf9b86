"""mIoU and fwIoU of the stuff labels, with ground truth from the panoptic PNGs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from detectron2.evaluation import SemSegEvaluator

from spatialflow.data.categories import VOID_LABEL
from spatialflow.data.targets import index_map, stuff_labels

from .ground_truth import PanopticGroundTruth
from .scratch import scratch_dataset


class PanopticSemSegEvaluator(SemSegEvaluator):
    """Detectron2's semantic evaluator on stuff labels taken from the panoptic ground truth.

    Label 0, 'other', is a class of its own: the things, as in Detectron2's evaluation of Panoptic
    FPN. What it keeps between images is one confusion matrix.
    """

    def __init__(self, ground_truth: PanopticGroundTruth):
        """
        Args:
            ground_truth: ground truth of the dataset to evaluate on.
        """
        self._ground_truth = ground_truth
        self._stuff_labels = {
            i: c.stuff_label for i, c in ground_truth.categories.segment_classes.items()
        }
        names = [c.name for c in ground_truth.categories.stuff]
        with scratch_dataset(
            ground_truth.name, stuff_classes=names, ignore_label=VOID_LABEL
        ) as name:
            super().__init__(name, sem_seg_loading_fn=self._load_labels)
        # Costs more than all the rest, for metrics that are not reported on panoptic data.
        self._compute_boundary_iou = False

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        # The base class asks for the ground truth of a file name; ours goes by image id.
        self.input_file_to_gt_file = {i["file_name"]: i["image_id"] for i in inputs}
        super().process(inputs, outputs)

    def evaluate(self) -> dict | None:
        """Evaluate as Detectron2 does.

        Returns:
            In the main process ``{"sem_seg": metrics}`` in percent; NaN where there is no pixel of
            a class, or of any.
        """
        with np.errstate(invalid="ignore"):
            return super().evaluate()

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """Nothing, so that the predictions of all images do not pile up in memory."""
        return []

    def _load_labels(self, image_id: Hashable, dtype: type) -> np.ndarray:
        truth = self._ground_truth.load(image_id)
        segments = [
            {**s, "stuff_label": self._stuff_labels[s["category_id"]]} for s in truth.segments
        ]
        index = index_map(truth.id_map, segments, truth.png)
        return stuff_labels(index, segments).astype(dtype)
