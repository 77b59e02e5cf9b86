"""The answer of many views: one NMS over all candidates, means of masks and stuff scores.

Legend: n detections, S stuff labels, H x W the output size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from spatialflow.modeling.boxes import select_detections
from spatialflow.modeling.panoptic import Merge, most_likely_labels
from spatialflow.modeling.panoptic_model import FirstPass, PanopticModel, Sizes, StuffLabels

from .member import Member, ViewBatch


class ViewFeatures(NamedTuple):
    """Mask features of some views, kept until the masks are predicted."""

    member: Member
    batch: ViewBatch
    mask_features: Any


class WeightedMean:
    """A mean that holds one tensor, however many are added; None when none was."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._weight = 0.0

    def add(self, value: Tensor, weight: float) -> None:
        """Add a tensor; all have the same shape."""
        value = value * weight
        self._sum = value if self._sum is None else self._sum.add_(value)
        self._weight += weight

    @property
    def value(self) -> Tensor | None:
        """The mean so far."""
        return None if self._sum is None else self._sum / self._weight


class EnsembleWithTTA(PanopticModel):
    """One answer of one or several models, each with one or several views of the image.

    Memory does not grow with the views but for the features that masks are predicted from: of a
    view of 2100x1400 pixels 62 MB with SpatialFlow.

    Args:
        members: the models with their views.
        input_format: the channel order of the images it is given, "BGR" or "RGB".
        nms_thresh, max_detections: of the NMS over all candidates.
        merge: merge of masks and stuff into the panoptic map; None leaves the map out.
        device: device on which the images are evaluated.
        one_at_a_time: bring the members to the device in turn, for members that do not fit
            together; they wait on the CPU.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        input_format: str,
        nms_thresh: float,
        max_detections: int,
        merge: Merge | None,
        device: str | torch.device,
        one_at_a_time: bool = False,
    ):
        super().__init__()
        self.members = nn.ModuleList(members).to("cpu" if one_at_a_time else device)
        self.input_format = input_format
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        models = [member.model for member in members]
        self.predicts_boxes = any(model.predicts_boxes for model in models)
        self.predicts_masks = any(model.predicts_masks for model in models)
        self.predicts_stuff = any(model.predicts_stuff for model in models)
        self.merge = merge if self.predicts_masks and self.predicts_stuff else None
        self._device = torch.device(device)
        self.one_at_a_time = one_at_a_time

    @property
    def device(self) -> torch.device:
        """Where the images are evaluated."""
        return self._device

    def groups(self, batched_inputs: list[dict]) -> list[list[int]]:
        """Each image alone: its views are the batch."""
        return [[i] for i in range(len(batched_inputs))]

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """The *original* (3, H, W) uint8 image of each dict, which the views resize."""
        return ImageList.from_tensors([x["image"] for x in batched_inputs])

    def first_pass(
        self, images: ImageList, output_sizes: Sizes, labels_only: bool = False
    ) -> FirstPass:
        """All views of the one image once: their candidates, the mean of their stuff scores."""
        (size,), image = output_sizes, images[0]
        candidates, stuff, kept = [], WeightedMean(), []
        for member in self._members():
            with self._in_use(member):
                for batch in member.batches(self._in_format(image, member), self.device):
                    outputs = member.first_pass(batch, size)
                    candidates += outputs.candidates
                    for scores, weight in zip(outputs.stuff, batch.weights, strict=False):
                        stuff.add(scores, weight)
                    if member.model.predicts_masks:
                        kept.append(ViewFeatures(member, batch, outputs.mask_features))
        mean: list[Any] = [] if stuff.value is None else [stuff.value]
        if labels_only:
            labels_of = most_likely_labels if self.merge is None else self.merge.labels_of
            mean = [StuffLabels(labels_of(scores), len(scores)) for scores in mean]
        return FirstPass([Instances.cat(candidates)] if candidates else [], mean, kept)

    def select(self, candidates: Instances) -> Instances:
        """One NMS over the candidates of all views."""
        return select_detections(candidates, self.nms_thresh, self.max_detections)

    def predict_masks(
        self, features: list[ViewFeatures], instances: list[Instances], image_sizes: Sizes
    ) -> list[Tensor]:
        """The mean mask probabilities (n, M, M); members with another M are resized."""
        (found,), mean, shape = instances, WeightedMean(), None
        for member, views in groupby(features, key=attrgetter("member")):
            with self._in_use(member):
                for _, batch, mask_features in views:
                    masks = member.predict_masks(mask_features, batch, found)
                    for masks_i, weight in zip(masks, batch.weights, strict=True):
                        shape = shape or masks_i.shape[1:]
                        if masks_i.shape[1:] != shape:
                            masks_i = F.interpolate(masks_i[:, None], shape, mode="bilinear")[:, 0]
                        mean.add(masks_i, weight)
        assert mean.value is not None
        return [mean.value]

    def _members(self) -> list[Member]:
        return [member for member in self.members if isinstance(member, Member)]

    def _in_format(self, image: Tensor, member: Member) -> Tensor:
        # BGR and RGB are each other's reverse.
        return image if member.input_format == self.input_format else image.flip(0)

    @contextmanager
    def _in_use(self, member: Member) -> Iterator[None]:
        if not self.one_at_a_time:
            yield
            return
        member.to(self.device)
        try:
            yield
        finally:
            member.to("cpu")
