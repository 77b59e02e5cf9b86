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
from detectron2.structures import Instances
from torch import Tensor, nn

from spatialflow.modeling.detection import select_detections
from spatialflow.modeling.mask_head import paste_masks
from spatialflow.modeling.panoptic import (
    MergeSettings,
    is_confident,
    merge_results,
    most_likely_labels,
)

from .member import Member, ViewBatch


class Seen(NamedTuple):
    """What is kept of some views until their masks are asked for."""

    member: Member
    batch: ViewBatch
    features: Any


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


class MultiViewModel(nn.Module):
    """Evaluates images with several views; input and output are those of SpatialFlow.

    Memory does not grow with the views but for the features that masks are predicted from: of a
    view of 2100x1400 pixels 62 MB with SpatialFlow.

    Args:
        members: the models with their views.
        input_format: the channel order of the images it is given, "BGR" or "RGB".
        nms_thresh, max_detections: of the NMS over all candidates.
        merge_settings: of the panoptic map; None leaves it out.
        device: where the images are evaluated.
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
        merge_settings: MergeSettings | None,
        device: str | torch.device,
        one_at_a_time: bool = False,
    ):
        super().__init__()
        self.members = nn.ModuleList(members).to("cpu" if one_at_a_time else device)
        self.input_format = input_format
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        self.merge_settings = merge_settings
        self.device = torch.device(device)
        self.one_at_a_time = one_at_a_time

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """The answer for each image.

        Args:
            batched_inputs: one dict an image. ``image``: the *original* (3, H, W) uint8 image,
                which the views resize; ``height`` and ``width``: the output size (default: the
                image's).

        Returns:
            Dicts with ``instances``, ``sem_seg`` and ``panoptic_seg`` as far as the members have
            masks and stuff, see :class:`spatialflow.modeling.SpatialFlow`.
        """
        return [self._answer(x) for x in batched_inputs]

    @torch.no_grad()
    def panoptic_inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Only the panoptic maps; see :meth:`spatialflow.modeling.SpatialFlow.panoptic_inference`.

        The mean of the stuff scores has its full size here too.

        Raises:
            RuntimeError: the members make no panoptic maps.
        """
        if not self.panoptic_on:
            raise RuntimeError("These members have no panoptic output; call the model itself.")
        return [{"panoptic_seg": self._merge_confident(x)} for x in batched_inputs]

    @property
    def panoptic_on(self) -> bool:
        """Whether things and stuff are merged."""
        stages = [member.stages for member in self.members]
        return (
            self.merge_settings is not None
            and any(x.predicts_masks for x in stages)
            and any(x.predicts_stuff for x in stages)
        )

    def _answer(self, x: dict) -> dict:
        instances, stuff, seen = self._detect(x)
        result: dict[str, Any] = {"instances": instances}
        masks = self._mean_masks(seen, instances)
        if masks is not None:
            instances.pred_masks = paste_masks(masks, instances)
        if stuff is not None:
            result["sem_seg"] = stuff
        if self.panoptic_on:
            result["panoptic_seg"] = self._merge(instances, stuff)
        return result

    def _merge_confident(self, x: dict) -> tuple[Tensor, list[dict]]:
        instances, stuff, seen = self._detect(x)
        instances = instances[is_confident(instances.scores, self.merge_settings.score_thresh)]
        instances.pred_masks = paste_masks(self._mean_masks(seen, instances), instances)
        return self._merge(instances, stuff)

    def _merge(self, instances: Instances, stuff: Tensor) -> tuple[Tensor, list[dict]]:
        return merge_results(instances, most_likely_labels(stuff), len(stuff), self.merge_settings)

    def _detect(self, x: dict) -> tuple[Instances, Tensor | None, list[Seen]]:
        """The detections, without masks, and what :meth:`_look` has beside their candidates."""
        image = x["image"]
        size = (x.get("height", image.shape[-2]), x.get("width", image.shape[-1]))
        candidates, stuff, seen = self._look(image, size)
        instances = select_detections(
            Instances.cat(candidates), self.nms_thresh, self.max_detections
        )
        return instances, stuff, seen

    def _look(
        self, image: Tensor, size: tuple[int, int]
    ) -> tuple[list[Instances], Tensor | None, list[Seen]]:
        """All views once: their candidates, the mean of their stuff scores, and what to keep."""
        candidates, stuff, seen = [], WeightedMean(), []
        for member in self.members:
            with self._in_use(member):
                for batch in member.batches(self._in_format(image, member), self.device):
                    features = member.stages.extract_features(batch.images)
                    candidates += member.find_candidates(features, batch, size)
                    if member.stages.predicts_stuff:
                        scores = member.stuff_scores(features, batch, size)
                        for scores_i, weight in zip(scores, batch.weights, strict=True):
                            stuff.add(scores_i, weight)
                    if member.stages.predicts_masks:
                        seen.append(Seen(member, batch, member.stages.mask_features(features)))
        return candidates, stuff.value, seen

    def _mean_masks(self, seen: list[Seen], instances: Instances) -> Tensor | None:
        """The mean mask probabilities (n, M, M); members with another M are resized."""
        mean, shape = WeightedMean(), None
        for member, views in groupby(seen, key=attrgetter("member")):
            with self._in_use(member):
                for _, batch, features in views:
                    masks = member.predict_masks(features, batch, instances)
                    for masks_i, weight in zip(masks, batch.weights, strict=True):
                        shape = shape or masks_i.shape[1:]
                        if masks_i.shape[1:] != shape:
                            masks_i = F.interpolate(masks_i[:, None], shape, mode="bilinear")[:, 0]
                        mean.add(masks_i, weight)
        return mean.value

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
