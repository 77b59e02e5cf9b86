"""Writing what the merge starts from while a model is evaluated."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from spatialflow.data.file_names import file_below
from spatialflow.modeling.panoptic import Merge
from spatialflow.saved.raw_outputs import FOLDER, RawOutputs, save_raw_output

from .ground_truth import PanopticGroundTruth
from .unannotated import UnannotatedImages

_TRUTH_KEYS = ("panoptic_root", "panoptic_json")


class RawOutputWriter(DatasetEvaluator):
    """Writes the raw outputs of a model with both segmentation branches; measures nothing."""

    def __init__(
        self,
        output_dir: str,
        dataset: PanopticGroundTruth | UnannotatedImages,
        merge: Merge,
    ):
        """
        Args:
            output_dir: folder for the index and the folder of the raw outputs.
            dataset: the dataset of the images.
            merge: the model's merge.
        """
        self._output_dir = output_dir
        self._categories = dataset.categories
        self._file_names = dataset.png_names
        self._truth = {
            k: os.path.abspath(dataset.files[k]) for k in _TRUTH_KEYS if k in dataset.files
        }
        self._merge = merge
        self.reset()

    def reset(self) -> None:
        self._written: dict[Hashable, str] = {}

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Write a batch: inputs with ``image_id``, outputs with ``instances`` and ``sem_seg``."""
        for image, output in zip(inputs, outputs, strict=True):
            stem = os.path.splitext(self._file_names[image["image_id"]])[0]
            file_name = file_below(FOLDER, f"{stem}.npz")
            labels = self._merge.labels_of(output["sem_seg"])
            save_raw_output(os.path.join(self._output_dir, file_name), output["instances"], labels)
            self._written[image["image_id"]] = file_name

    def evaluate(self) -> None:
        """Write the index, in the main process."""
        parts = comm.gather(self._written)
        if not comm.is_main_process():
            return
        RawOutputs(
            folder=self._output_dir,
            merge=self._merge,
            categories=self._categories.as_json(),
            thing_ids=[c.id for c in self._categories.things],
            stuff_ids=[c.id for c in self._categories.stuff],
            truth=self._truth,
            files={image_id: name for part in parts for image_id, name in part.items()},
        ).save()
