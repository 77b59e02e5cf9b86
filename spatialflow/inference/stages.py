"""What a model must offer to take part in a multi-view answer.

:class:`spatialflow.modeling.SpatialFlow` has these stages;
:class:`.detectron2_models.RCNNStages` gives them to models of Detectron2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from detectron2.structures import ImageList, Instances
from torch import Tensor

Features = TypeVar("Features")
Sizes = Sequence[tuple[int, int]]


class Stages(Protocol[Features]):
    """The stages of a model between image and answer; sizes are (height, width)."""

    predicts_masks: bool
    predicts_stuff: bool

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise and pad the ``image`` of each dict."""

    def extract_features(self, images: ImageList) -> Features:
        """All that the other stages need."""

    def find_candidates(
        self, features: Features, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Instances]:
        """Of each image ``pred_boxes`` at its output size, ``scores`` and ``pred_classes``."""

    def stuff_scores(
        self, features: Features, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Tensor]:
        """Of each image the scores (S, H, W) at its output size."""

    def mask_features(self, features: Features) -> Features:
        """Only what :meth:`predict_masks` needs, so that the rest can be freed."""

    def predict_masks(
        self, features: Features, instances: list[Instances], image_sizes: Sizes
    ) -> list[Tensor]:
        """Of each image the mask probabilities (n, M, M) for boxes at the output size."""
