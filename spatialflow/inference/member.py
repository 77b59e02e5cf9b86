"""One model of a multi-view answer: its views, its weight, its class numbers.

Legend: n boxes, S stuff labels, M the side of a predicted mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from spatialflow.modeling.batching import split_batch
from spatialflow.modeling.panoptic_model import FirstPass, PanopticModel

from .views import View, apply_view, flip_instances


@dataclass
class ViewBatch:
    """Views of an image that have one size, as a member sees them."""

    images: ImageList
    flips: list[bool]
    weights: list[float]


@dataclass(frozen=True)
class ClassNumbers:
    """How a member numbers the classes of the answer.

    Attributes:
        things: the member's class of each thing class of the answer.
        stuff: the member's label of each stuff label of the answer; empty without a stuff branch.
    """

    things: list[int]
    stuff: list[int]


class Member(nn.Module):
    """A model that takes part, in the answer's class numbers and at the answer's size.

    Args:
        model: the model.
        views: how it is shown an image.
        input_format: the channel order it wants, "BGR" or "RGB".
        weight: weight of all its views together, in the means.
        numbers: its class numbers; None when they are those of the result.
    """

    def __init__(
        self,
        model: PanopticModel,
        views: Sequence[View],
        input_format: str,
        weight: float = 1.0,
        numbers: ClassNumbers | None = None,
    ):
        super().__init__()
        self.model = model
        self.views = list(views)
        self.input_format = input_format
        self.weight = weight
        self.numbers = numbers

    def batches(self, image: Tensor, device: torch.device) -> Iterator[ViewBatch]:
        """The views of an image (3, H, W), those of one size together, made when they are due.

        On a CPU large views come alone, see :func:`spatialflow.modeling.batching.split_batch`.
        """
        by_size: dict[tuple[int, ...], list[tuple[Tensor, View]]] = {}
        for view in self.views:
            shown = apply_view(view, image)
            by_size.setdefault(tuple(shown.shape), []).append((shown, view))
        for (_, height, width), group in by_size.items():
            for part in split_batch(group, (height, width), device):
                yield ViewBatch(
                    self.model.preprocess_image([{"image": shown} for shown, _ in part]),
                    flips=[view.flip for _, view in part],
                    weights=[self.weight * view.weight for _, view in part],
                )

    def first_pass(self, batch: ViewBatch, size: tuple[int, int]) -> FirstPass:
        """Candidates and stuff scores of each view, as they lie in the original image.

        Args:
            batch: the views.
            size: (height, width) of the output.
        """
        outputs = self.model.first_pass(batch.images, [size] * len(batch.flips))
        candidates = [self._in_ensemble(x) for x in outputs.candidates]
        stuff = outputs.stuff
        if self.numbers is not None:
            stuff = [x[self.numbers.stuff] for x in stuff]
        return outputs._replace(
            candidates=[
                flip_instances(x) if flip else x
                for x, flip in zip(candidates, batch.flips, strict=False)
            ],
            stuff=[x.flip(-1) if flip else x for x, flip in zip(stuff, batch.flips, strict=False)],
        )

    def _in_ensemble(self, candidates: Instances) -> Instances:
        """What all members have of candidates, in the class numbers of the ensemble."""
        classes = candidates.pred_classes
        if self.numbers is not None:
            ensemble_class = torch.tensor(self.numbers.things, device=classes.device).argsort()
            classes = ensemble_class[classes]
        return Instances(
            candidates.image_size,
            pred_boxes=candidates.pred_boxes,
            scores=candidates.scores,
            pred_classes=classes,
        )

    def predict_masks(self, features: Any, batch: ViewBatch, instances: Instances) -> list[Tensor]:
        """What each view has as masks (n, M, M) of the instances of the original image."""
        asked = Instances(instances.image_size, pred_boxes=instances.pred_boxes)
        asked.pred_classes = instances.pred_classes
        if self.numbers is not None:
            own_class = torch.tensor(self.numbers.things, device=asked.pred_classes.device)
            asked.pred_classes = own_class[asked.pred_classes]
        in_views = [flip_instances(asked) if flip else asked for flip in batch.flips]
        masks = self.model.predict_masks(features, in_views, batch.images.image_sizes)
        return [x.flip(-1) if flip else x for x, flip in zip(masks, batch.flips, strict=True)]
