"""What every panoptic model offers between image and panoptic map, and the order of its steps.

    image -> preprocess_image -> first_pass -> select -> predict_masks -> merge -> panoptic map

    first_pass:  dense -> find_candidates
                       -> stuff_scores
                       -> mask_features

Evaluation, test-time augmentation, ensembles, ``optimize`` and the benchmark know a model by this
class alone. A new meta-architecture derives from it; a model that exists elsewhere gets an adapter,
see :mod:`.adapters` and :mod:`.rcnn`.

Legend: N images, n detections of an image, K thing classes, S stuff labels, M the side of a
predicted mask. Sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from .batching import groups_of_one_size
from .mask_head import paste_masks
from .panoptic import Merge, most_likely_labels
from .tracing import is_traced_without_map

Sizes = Sequence[tuple[int, int]]


class StuffLabels(NamedTuple):
    """What the merge's ``labels_of`` gives for an image, and how many stuff labels exist."""

    labels: Tensor
    num_labels: int


class FirstPass(NamedTuple):
    """What does not depend on the boxes that are chosen.

    Attributes:
        candidates: scored boxes of each image, see :meth:`PanopticModel.find_candidates`;
            empty without a box branch.
        stuff: scores (S, H, W) of each image at its output size or, for panoptic maps alone,
            :class:`StuffLabels`; empty without a stuff branch.
        mask_features: input of :meth:`PanopticModel.predict_masks`; None without masks.
    """

    candidates: list[Instances]
    stuff: list[Any]
    mask_features: Any


class ClassLogits(NamedTuple):
    """The layer that scores the thing classes, for the benchmark.

    Attributes:
        layer: a module with ``weight`` and ``bias`` whose outputs are class logits.
        has_background: whether its last output is the background's.
        share: how much of a class logit it is, less than 1 where several layers are averaged.
    """

    layer: nn.Module
    has_background: bool
    share: float = 1.0


class PanopticModel(nn.Module):
    """A model whose inference is made of the steps below.

    A subclass implements the steps of the branches it has, :meth:`losses` if it trains, and sets
    in its constructor the attributes that differ from the class's.

    Attributes:
        predicts_boxes, predicts_masks, predicts_stuff: the branches it has.
        nms_thresh: IoU over which boxes of one class are taken for the same thing, also among the
            candidates of several views.
        merge: makes the panoptic map of instances and stuff scores; None leaves the map out.
        size_divisibility: :meth:`preprocess_image` pads sides to multiples of it.
        class_layers: prefixes of the names of the parameters that depend on the classes.
        class_counts: config keys of the number of things and, with stuff, of its labels; 0 there
            says that it is to be taken from the dataset.
    """

    predicts_boxes: bool = True
    predicts_masks: bool = True
    predicts_stuff: bool = True
    nms_thresh: float = 0.5
    merge: Merge | None = None
    size_divisibility: int = 1
    class_layers: ClassVar[tuple[str, ...]] = ()
    class_counts: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def build_merge(cls, cfg: CfgNode) -> Merge | None:
        """The merge that a config asks for, before it is known which branches the model has."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, results in evaluation.

        Args:
            batched_inputs: one dict an image. ``image``: (3, h, w) in the config's channel order;
                ``height`` and ``width``: the output size (default: h and w). What training needs
                besides: see :meth:`losses`.

        Returns:
            In training the losses. In evaluation a dict an image, with what the model has of
            ``instances`` (``pred_boxes``, ``scores``, ``pred_classes`` and, with a mask branch,
            ``pred_masks`` (n, H, W) bool), ``sem_seg`` (S, H, W) scores, and ``panoptic_seg``, the
            map (H, W) int32 and its segments, which is left out of a ``torch.jit.trace``.
        """
        if self.training:
            return self.losses(batched_inputs)
        return self._by_size(self.inference, batched_inputs)

    @torch.no_grad()
    def panoptic_inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Only the panoptic maps, with less time and memory than all results take.

        Masks are predicted for the instances that can be on the map alone, and stuff scores need
        not be held at the output size.

        Args:
            batched_inputs: see :meth:`forward`.

        Returns:
            A dict an image with ``panoptic_seg``, but for rounding that of :meth:`forward`.

        Raises:
            RuntimeError: the model makes no panoptic maps, or is being traced.
        """
        if self.merge is None or is_traced_without_map():
            raise RuntimeError("This model has no panoptic output; call the model itself.")
        return self._by_size(self._panoptic_maps, batched_inputs)

    def losses(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """The weighted terms of the loss, scalars by name; ``forward`` says what the inputs are."""
        raise RuntimeError(f"{type(self).__name__} is for inference only.")

    def groups(self, batched_inputs: list[dict]) -> list[list[int]]:
        """The images that run together: an image's result never depends on its batch."""
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        return groups_of_one_size(sizes, self.size_divisibility, self.device)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """The results of images that pad to one size, see :meth:`forward`."""
        images = self.preprocess_image(batched_inputs)
        outputs = self.first_pass(images, _output_sizes(batched_inputs, images))
        instances = [self.select(candidates) for candidates in outputs.candidates]
        self._attach_masks(instances, outputs, images)
        results: list[dict] = [{} for _ in batched_inputs]
        for result, found in zip(results, instances, strict=False):
            result["instances"] = found
        for result, scores in zip(results, outputs.stuff, strict=False):
            result["sem_seg"] = scores
        if self.merge is not None and not is_traced_without_map():
            for result in results:
                result["panoptic_seg"] = self.merge(result["instances"], result["sem_seg"])
        return results

    def _panoptic_maps(self, batched_inputs: list[dict]) -> list[dict]:
        """The maps of images that pad to one size, see :meth:`panoptic_inference`."""
        assert self.merge is not None
        images = self.preprocess_image(batched_inputs)
        sizes = _output_sizes(batched_inputs, images)
        outputs = self.first_pass(images, sizes, labels_only=True)
        instances = [self.merge.usable(self.select(x)) for x in outputs.candidates]
        self._attach_masks(instances, outputs, images)
        return [
            {"panoptic_seg": self.merge.from_labels(found, *labels)}
            for found, labels in zip(instances, outputs.stuff, strict=True)
        ]

    def _attach_masks(
        self, instances: list[Instances], outputs: FirstPass, images: ImageList
    ) -> None:
        if self.predicts_masks:
            masks = self.predict_masks(outputs.mask_features, instances, images.image_sizes)
            for found, masks_i in zip(instances, masks, strict=True):
                self.attach_masks(found, masks_i)

    def _by_size(
        self, infer: Callable[[list[dict]], list[dict]], batched_inputs: list[dict]
    ) -> list[dict]:
        """Run the images of each group together and put the results into the batch's order."""
        results: list[dict] = [{}] * len(batched_inputs)
        for indices in self.groups(batched_inputs):
            group = infer([batched_inputs[i] for i in indices])
            for i, result in zip(indices, group, strict=True):
                results[i] = result
        return results

    def first_pass(
        self, images: ImageList, output_sizes: Sizes, labels_only: bool = False
    ) -> FirstPass:
        """Everything that is known before boxes are chosen, for images of one size.

        Args:
            images: the batch that :meth:`preprocess_image` returned.
            output_sizes: (height, width) of each image's result.
            labels_only: stuff as labels instead of scores.
        """
        dense, sizes = self.dense(images.tensor), images.image_sizes
        stuff: list[Any] = []
        if self.predicts_stuff:
            read = self.stuff_labels if labels_only else self.stuff_scores
            stuff = list(read(dense, sizes, output_sizes))
        return FirstPass(
            self.find_candidates(dense, sizes, output_sizes) if self.predicts_boxes else [],
            stuff,
            self.mask_features(dense) if self.predicts_masks else None,
        )

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the ``image`` of each dict and pad them with zeros to one size."""
        raise NotImplementedError

    def dense(self, images: Tensor) -> Any:
        """Everything that is computed densely from normalised images (N, 3, h, w).

        Returns:
            Tensors in tuples, lists or dicts, so that it can be compiled.
        """
        raise NotImplementedError

    def find_candidates(
        self, dense: Any, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[Instances]:
        """What :meth:`select` chooses from.

        Args:
            dense: the value that :meth:`dense` returned.
            image_sizes: (height, width) of each network input without padding.
            output_sizes: (height, width) of each image's result.

        Returns:
            Of each image ``pred_boxes`` at its output size, ``scores`` and ``pred_classes``.
        """
        raise NotImplementedError

    def select(self, candidates: Instances) -> Instances:
        """The detections of an image, best first: by default the candidates themselves."""
        return candidates

    def stuff_scores(self, dense: Any, image_sizes: Sizes, output_sizes: Sizes) -> list[Tensor]:
        """Stuff scores (S, H, W) of each image at its output size; arguments as above."""
        raise NotImplementedError

    def stuff_labels(
        self, dense: Any, image_sizes: Sizes, output_sizes: Sizes
    ) -> list[StuffLabels]:
        """The labels of :meth:`stuff_scores`; a model may get them with less memory."""
        scores = self.stuff_scores(dense, image_sizes, output_sizes)
        labels_of = most_likely_labels if self.merge is None else self.merge.labels_of
        return [StuffLabels(labels_of(x), len(x)) for x in scores]

    def mask_features(self, dense: Any) -> Any:
        """Only what :meth:`predict_masks` needs, so that the rest can be freed."""
        return dense

    def predict_masks(
        self, features: Any, instances: list[Instances], image_sizes: Sizes
    ) -> list[Tensor]:
        """Mask probabilities (n, M, M) for the boxes of each image, of the class of each.

        Args:
            features: the value that :meth:`mask_features` returned.
            instances: ``pred_boxes`` at the output size and ``pred_classes``.
            image_sizes: (height, width) of each network input without padding.
        """
        raise NotImplementedError

    def attach_masks(self, instances: Instances, masks: Tensor) -> None:
        """Set ``pred_masks`` (n, H, W) bool from what :meth:`predict_masks` returned.

        For a merge that reads them the probabilities are kept as ``pred_mask_probs``.
        """
        instances.pred_masks = paste_masks(masks, instances)
        if self.merge is not None and self.merge.reads_probabilities:
            instances.pred_mask_probs = masks

    def fuse(self) -> None:
        """Replace parts in place by faster ones of equal results, for inference only."""

    def class_logits(self) -> ClassLogits | None:
        """The layer by which the benchmark sets the number of detections; None: it does not."""
        return None


def _output_sizes(batched_inputs: list[dict], images: ImageList) -> list[tuple[int, int]]:
    """The (height, width) of each image's results, see :meth:`PanopticModel.forward`."""
    return [
        (x.get("height", size[0]), x.get("width", size[1]))
        for x, size in zip(batched_inputs, images.image_sizes, strict=True)
    ]
