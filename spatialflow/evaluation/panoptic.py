"""Panoptic quality inside Detectron2's evaluator interface."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from spatialflow.saved.dataset import SavedDataset
from spatialflow.saved.predictions import write_prediction, write_predictions_json

from .ground_truth import AnnotatedImage, PanopticGroundTruth
from .panoptic_quality import GROUP_SUFFIXES, PanopticCounts, SegmentMatches, match_segments

logger = logging.getLogger(__name__)


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of a model's ``panoptic_seg``, accumulated image by image.

    What it keeps between images are counts per class. Nothing is written unless a folder is given.
    """

    def __init__(self, ground_truth: PanopticGroundTruth, output_dir: str | None = None):
        """
        Args:
            ground_truth: ground truth of the dataset to evaluate on.
            output_dir: folder for the predictions in COCO's panoptic results format,
                ``panoptic_predictions.json`` and a PNG an image in ``panoptic_predictions/``, and
                what is needed to score them again, ``dataset.json``: the dataset's ``name``,
                ``image_root``, ``panoptic_root`` and ``panoptic_json``, with absolute paths.
        """
        self._ground_truth = ground_truth
        self._output_dir = output_dir
        categories = ground_truth.categories
        self._dataset_ids = {
            (c.isthing, c.category_id): i for i, c in categories.segment_classes.items()
        }
        self._categories = categories.as_json()
        self.reset()

    def reset(self) -> None:
        self._counts = PanopticCounts(self._categories)
        self._num_images = 0
        self._wrong_areas: tuple[int, str] = (0, "")  # how many, and the first of them in words
        self._written: list[dict] = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Count a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``panoptic_seg``: the (H, W) integer tensor of segment ids, 0 for
                void, and its segments, dicts with ``id``, ``isthing`` and ``category_id``, which is
                the thing class or the stuff label.

        Raises:
            ValueError: the image is not annotated, the prediction has a class that the dataset
                lacks, or a map (predicted or annotated) does not fit its segments.
        """
        for image, output in zip(inputs, outputs, strict=True):
            id_map, segments = output["panoptic_seg"]
            self._process_one(image["image_id"], id_map.cpu().numpy(), segments)

    def evaluate(self) -> dict | None:
        """Merge the counts of all processes and average.

        Returns:
            In the main process ``{"panoptic_seg": metrics}``, None in the others. The metrics are
            those of :meth:`PanopticCounts.metrics`.
        """
        comm.synchronize()
        parts = comm.gather((self._counts, self._num_images, self._wrong_areas, self._written))
        if not comm.is_main_process():
            return None
        counts = PanopticCounts(self._categories)
        for part, *_ in parts:
            counts += part
        self._warn_of_images(sum(n for _, n, *_ in parts))
        self._warn_of_areas([areas for *_, areas, _ in parts if areas[0]])
        if self._output_dir is not None:
            self._write_lists([a for *_, written in parts for a in written])
        metrics = counts.metrics()
        self._warn_of_nothing(metrics)
        return {"panoptic_seg": metrics}

    def _process_one(self, image_id: Hashable, id_map: np.ndarray, segments: Sequence) -> None:
        truth = self._ground_truth.load(image_id)
        segments = [self._with_dataset_id(s, image_id) for s in segments]
        try:
            matches = match_segments(id_map, segments, truth.id_map, truth.segments)
            self._counts.add(matches)
        except ValueError as e:
            raise ValueError(f"Image {image_id!r}, ground truth {truth.png}: {e}.") from e
        self._num_images += 1
        self._compare_areas(truth, matches)
        if self._output_dir is not None:
            self._write_map(image_id, id_map, segments)

    def _with_dataset_id(self, segment: Mapping, image_id: Hashable) -> dict:
        isthing, number = bool(segment["isthing"]), segment["category_id"]
        try:
            return {**segment, "category_id": self._dataset_ids[isthing, number]}
        except KeyError:
            kind = "thing class" if isthing else "stuff label"
            known = sorted(n for thing, n in self._dataset_ids if thing == isthing)
            raise ValueError(
                f"Image {image_id!r}: the model predicts {kind} {number}, but dataset "
                f"{self._ground_truth.name} has {known}. Is it the dataset the model is for?"
            ) from None

    def _compare_areas(self, truth: AnnotatedImage, matches: SegmentMatches) -> None:
        for segment, area in zip(truth.segments, matches.gt_areas.tolist(), strict=True):
            claimed = segment.get("area", area)
            if claimed != area:
                number, example = self._wrong_areas
                example = example or (
                    f"segment {segment['id']} of {truth.png} has {area} pixels, the JSON says "
                    f"{claimed}"
                )
                self._wrong_areas = number + 1, example

    def _write_map(self, image_id: Hashable, id_map: np.ndarray, segments: list[dict]) -> None:
        assert self._output_dir is not None
        file_name = self._ground_truth.png_names[image_id]
        self._written.append(
            write_prediction(self._output_dir, image_id, file_name, id_map, segments)
        )

    def _write_lists(self, annotations: list[dict]) -> None:
        assert self._output_dir is not None
        os.makedirs(self._output_dir, exist_ok=True)
        write_predictions_json(self._output_dir, self._categories, annotations)
        SavedDataset(self._ground_truth.name, **self._ground_truth.files).save(self._output_dir)

    def _warn_of_images(self, number: int) -> None:
        annotated = len(self._ground_truth.png_names)
        if number != annotated:
            logger.warning(
                f"{number} of the {annotated} annotated images of {self._ground_truth.name} were "
                "evaluated; the numbers are for these only."
            )

    def _warn_of_areas(self, wrong: list[tuple[int, str]]) -> None:
        if wrong:
            logger.warning(
                f"{self._ground_truth.name}: {sum(n for n, _ in wrong)} areas in the JSON differ "
                f"from the PNGs, whose pixels are what counts here; {wrong[0][1]}."
            )

    def _warn_of_nothing(self, metrics: Mapping[str, float]) -> None:
        empty = [group for group, end in GROUP_SUFFIXES.items() if math.isnan(metrics[f"PQ{end}"])]
        if empty:
            logger.warning(
                f"{self._ground_truth.name}: no class of {', '.join(empty)} occurs in ground truth "
                "or prediction of the evaluated images; PQ, SQ and RQ are NaN there."
            )
