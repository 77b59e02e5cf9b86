"""The module that is exported: from a picture to its panoptic map.

Legend: see :mod:`.detections`; H x W is the network's input with its padding, h x w without it,
H' x W' the size of the result, S the number of stuff labels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from spatialflow.errors import UserError
from spatialflow.modeling.panoptic import HeuristicMerge
from spatialflow.modeling.panoptic_model import PanopticModel

from .detections import Frame
from .merge import SETTINGS, Grid, merge
from .prepare import prepare
from .systems import System, system_of

Stop = Literal["panoptic", "masks", "dense"]
STOPS: tuple[Stop, ...] = ("panoptic", "masks", "dense")
INPUTS = ("padded", "input_rows", "input_columns", "rows", "columns", "settings")
DETECTION_THRESH = "detection_thresh"
"""Name of the first of the settings: detections have a score over it."""
DETECTION_OUTPUTS = ("boxes", "scores", "classes", "masks")
PANOPTIC_OUTPUTS = ("panoptic", "segment_ids", "segment_areas")
LABELS_AT_A_TIME = 16
"""Stuff labels whose scores are at the output size at a time: a large picture needs the memory."""


class PictureGraph(nn.Module):
    """From a padded picture to the panoptic map, or (``stop`` "masks") to masks and stuff scores.

    Args:
        model: any panoptic model of a class that can be exported, in evaluation mode.
        input_format: "BGR" or "RGB", the order of the model's channels.
        stop: "panoptic" or "masks".

    Raises:
        UserError: the model cannot be exported.
    """

    input_names = INPUTS

    def __init__(self, model: PanopticModel, input_format: str, stop: Stop):
        super().__init__()
        self.system = prepared_system(model)
        self.is_bgr = input_format == "BGR"
        self.stop = stop
        self.merge: HeuristicMerge | None = None
        if not (model.predicts_boxes and model.predicts_masks and model.predicts_stuff):
            raise UserError("Only models of boxes, masks and stuff can be exported.")
        if stop == "panoptic":
            self.merge = _heuristic_merge(model)

    @property
    def output_names(self) -> list[str]:
        """The names of what :meth:`forward` returns."""
        if self.merge is None:
            return [*DETECTION_OUTPUTS, "stuff_scores"]
        return [*PANOPTIC_OUTPUTS, *DETECTION_OUTPUTS]

    @property
    def settings(self) -> dict[str, float]:
        """The model's own values of the input ``settings``, by name."""
        values = {} if self.merge is None else {k: getattr(self.merge, k) for k in SETTINGS}
        given = {k: float(v) for k, v in values.items() if v is not None}
        return {DETECTION_THRESH: self.system.score_thresh, **given}

    def forward(
        self,
        padded: Tensor,
        input_rows: Tensor,
        input_columns: Tensor,
        rows: Tensor,
        columns: Tensor,
        settings: Tensor,
    ) -> tuple[Tensor, ...]:
        """Everything of one picture.

        Args:
            padded: (H, W, 3) uint8 in RGB order, its top left (h, w) being the picture.
            input_rows, input_columns: (h,) and (w,), whose lengths alone matter.
            rows, columns: 0 to H' - 1 and 0 to W' - 1, int64.
            settings: the threshold of detections, then with ``stop`` "panoptic" those of the merge.

        Returns:
            :attr:`output_names`: ``panoptic`` (H', W') and the segments, see
            :class:`spatialflow.export.merge.Panoptic`; ``boxes`` (K, 4), ``scores`` (K,), 0 in
            rows without a detection, ``classes`` (K,), ``masks`` (K, M, M); ``stuff_scores``
            (S, H', W').
        """
        frame = Frame(
            (input_rows.shape[0], input_columns.shape[0]), (rows.shape[0], columns.shape[0])
        )
        dense = self.system.dense(self.normalise(padded, frame))
        found = self.system.detect(dense, frame, settings[0])
        masks = self.system.masks(dense, found.boxes / frame.scale(), found.classes)
        found = found._replace(scores=found.scores * found.exist())
        if self.merge is None:
            return *found, masks, self.system.stuff_scores(dense.stuff[0], frame)
        panoptic = merge(
            found,
            masks,
            self.labels(dense.stuff[0], frame),
            dense.stuff.shape[1],
            settings[1:],
            Grid(rows.float(), columns.float()),
            self.merge.thing_labels,
            self.merge.box_fill_min_free is not None,
        )
        return *panoptic, *found, masks

    def normalise(self, image: Tensor, frame: Frame) -> Tensor:
        """(1, 3, H, W) as the model takes it, zeros outside the picture."""
        pixels = image.permute(2, 0, 1).float()
        if self.is_bgr:
            pixels = pixels.flip(0)
        pixels = (pixels - self.system.pixel_mean) / self.system.pixel_std
        rows, columns = (
            torch.arange(n) < end for n, end in zip(pixels.shape[1:], frame.input_size, strict=True)
        )
        return (pixels * (rows[:, None] & columns[None]))[None]

    def labels(self, scores: Tensor, frame: Frame) -> Tensor:
        """The best label of each pixel of the result, (H', W') int64."""
        best: Tensor | None = None
        labels: Tensor | None = None
        for first in range(0, scores.shape[0], LABELS_AT_A_TIME):
            part = scores[first : first + LABELS_AT_A_TIME]
            values, indices = self.system.stuff_scores(part, frame).max(dim=0)
            if best is None or labels is None:
                best, labels = values, indices
            else:
                labels = torch.where(values > best, indices + first, labels)
                best = torch.maximum(values, best)
        assert labels is not None
        return labels


class DenseGraph(nn.Module):
    """Everything before boxes are chosen, for a runtime without NMS and loops such as TensorRT.

    Args:
        model: see :class:`PictureGraph`.
    """

    input_names = ("images",)

    def __init__(self, model: PanopticModel):
        super().__init__()
        self.system = prepared_system(model)
        self.settings: dict[str, float] = {}
        with torch.no_grad():
            dense = self.system.dense(torch.zeros(1, 3, 64, 64))
        named, _ = tree_flatten_with_path(dense)
        self.output_names = [_plain("".join(map(str, path))) for path, _ in named]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tensors of :meth:`PanopticModel.dense`, from normalised images (N, 3, H, W)."""
        return tuple(torch.utils._pytree.tree_leaves(self.system.dense(images)))


Graph = PictureGraph | DenseGraph


def build_graph(model: PanopticModel, input_format: str, stop: Stop) -> Graph:
    """The graph of a model up to a step; see :class:`PictureGraph` and :class:`DenseGraph`."""
    if stop == "dense":
        return DenseGraph(model).eval()
    return PictureGraph(model, input_format, stop).eval()


def prepared_system(model: PanopticModel) -> System:
    """The system of a copy of a model that is prepared for export."""
    return system_of(prepare(model))


def example_inputs(graph: Graph) -> tuple[Tensor, ...]:
    """Inputs to trace with: every level of the pyramid is larger than one cell."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(graph, DenseGraph):
        return (torch.randn(1, 3, 288, 416, generator=generator),)
    image = torch.randint(0, 256, (288, 416, 3), dtype=torch.uint8, generator=generator)
    settings = torch.tensor(list(graph.settings.values()))
    return (image, *(torch.arange(n) for n in (280, 401, 350, 500)), settings)


def _heuristic_merge(model: PanopticModel) -> HeuristicMerge:
    if not isinstance(model.merge, HeuristicMerge):
        raise UserError(
            f"The merge of {type(model).__name__} cannot be exported: it is "
            f"{type(model.merge).__name__}, and HeuristicMerge can. With --stop masks the file "
            "ends before the merge."
        )
    if model.merge.rim_fill_min_prob is not None:
        raise UserError(
            "The fill of rims cannot be exported: set MODEL.SPATIALFLOW.RIM_FILL.ENABLED to False."
        )
    return model.merge


def _plain(path: str) -> str:
    """A path in nested tensors, such as ``.features.cls[0]``, as a name: ``features_cls_0``."""
    words = "".join(c if c.isalnum() else " " for c in path).split()
    return "_".join(words)
