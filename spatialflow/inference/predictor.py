"""From one picture to its panoptic segmentation, in Python."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.data import transforms as T
from detectron2.structures import Instances

from spatialflow.config import (
    check_device,
    class_count_is_unset,
    load_config,
    read_key,
)
from spatialflow.data import Categories, PanopticMapper, dataset_categories, prepare_datasets
from spatialflow.data.segments import segments_as_json
from spatialflow.model_zoo.shipped import set_shipped_classes
from spatialflow.modeling.adapters import configured_class
from spatialflow.visualization import draw_panoptic, drawn_segments

from . import load_model

CHANNELS_TO_BGR = {1: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR}


class Predictor:
    """A trained model that takes pictures one by one.

    The dataset it was trained on need not be there: without it the classes go by numbers, except
    for weights that come with the project, which have their names.

    Args:
        config: a config, or the path of a config file.
        weights: path or URL of the weights; default: the config's MODEL.WEIGHTS.
        opts: ``KEY VALUE ...`` overrides of the config.

    Attributes:
        cfg, model: the config, and the model in evaluation mode.
        categories, metadata: the classes, ours and as Detectron2's ``Visualizer`` wants them.

    Raises:
        FileNotFoundError, KeyError, ValueError: a bad config, no such device, weights that are
            missing, unsafe, or do not fit; the dataset is missing and neither are the config's
            class counts.

    Example:
        >>> predictor = Predictor("configs/COCO/spatialflow_R_50_20e.yaml", "model_final.pth")
        >>> output = predictor(cv2.imread("street.jpg"))
        >>> panoptic_map, segments = output["panoptic_seg"]
    """

    def __init__(
        self,
        config: CfgNode | str | os.PathLike,
        weights: str | None = None,
        opts: Sequence[str] = (),
    ) -> None:
        cfg = config.clone() if isinstance(config, CfgNode) else load_config(os.fspath(config))
        cfg.defrost()
        cfg.merge_from_list(list(opts))
        cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS if weights is None else os.fspath(weights)
        check_device(cfg)
        self.categories = _find_categories(cfg)
        self.metadata = Metadata(**self.categories.as_metadata())
        mapper = PanopticMapper(cfg, is_train=False)
        if mapper.image_format not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT must be BGR or RGB here, not {mapper.image_format!r}.")
        self._augmentations, self._image_format = mapper.augmentations, mapper.image_format
        self.cfg = cfg
        self.model = load_model(cfg)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Segment one picture.

        Args:
            image: (H, W, 3) uint8 in BGR order, as ``cv2.imread`` gives it; grey (H, W) and
                BGRA (H, W, 4) are converted.

        Returns:
            Detectron2's output for one image at its size: what the model has of ``panoptic_seg``,
            ``instances`` and ``sem_seg``, see :class:`spatialflow.modeling.PanopticModel`.

        Raises:
            TypeError, ValueError: it is no such array.
        """
        return self.model([self.model_input(image)])[0]

    @torch.no_grad()
    def panoptic(self, image: np.ndarray) -> dict[str, Any]:
        """As the call, but only ``panoptic_seg``: less time, and far less memory of large pictures.

        Of a model that makes no panoptic map it is what the call returns.

        Args:
            image: see the call.
        """
        if self.model.merge is None:
            return self(image)
        return self.model.panoptic_inference([self.model_input(image)])[0]

    def model_input(self, image: np.ndarray) -> dict[str, Any]:
        """A picture as the model takes it: resized, ``image`` (3, h, w), ``height``, ``width``.

        Args:
            image: see the call.
        """
        image = as_bgr(image)
        height, width = image.shape[:2]
        if self._image_format == "RGB":
            image = image[:, :, ::-1]
        aug_input = T.AugInput(image)
        self._augmentations(aug_input)
        tensor = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}

    def draw(self, image: np.ndarray, output: dict[str, Any]) -> np.ndarray:
        """The picture with its segments, or what else the model makes: instances, or stuff labels.

        Args:
            image: the image of the output.
            output: what calling the predictor returned for the image.

        Returns:
            (H, W, 3) uint8 in BGR order, of the picture's size.
        """
        ids, segments = _segments_of(output)
        return draw_panoptic(as_bgr(image), ids, drawn_segments(segments, self.categories))

    def segments(self, output: dict[str, Any]) -> list[dict[str, Any]]:
        """The segments of a picture in the dataset's terms, ready for JSON.

        Args:
            output: what calling the predictor returned, with ``panoptic_seg``.

        Returns:
            See :func:`spatialflow.data.segments.segments_as_json`.
        """
        panoptic_map, segments = output["panoptic_seg"]
        return segments_as_json(panoptic_map.cpu().numpy(), segments, self.categories)


def _segments_of(output: dict[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A map (H, W) and its segments, to draw whatever a model makes of a picture."""
    if "panoptic_seg" in output:
        panoptic_map, segments = output["panoptic_seg"]
        return panoptic_map.cpu().numpy(), segments
    if "instances" in output:
        return _layers(output["instances"].to("cpu"))
    labels = output["sem_seg"].argmax(dim=0).cpu().numpy().astype(np.int32)
    present = np.unique(labels).tolist()
    return labels + 1, [{"id": i + 1, "isthing": False, "category_id": i} for i in present]


def _layers(instances: Instances) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Instances as a map: the better one lies over the other; those without masks are frames."""
    ids = np.zeros(instances.image_size, np.int32)
    segments = []
    for i in instances.scores.argsort().tolist():
        if instances.has("pred_masks"):
            ids[instances.pred_masks[i].numpy()] = i + 1
        else:
            x1, y1, x2, y2 = instances.pred_boxes.tensor[i].round().int().tolist()
            cv2.rectangle(ids, (x1, y1), (x2, y2), i + 1, thickness=2)
        category_id, score = int(instances.pred_classes[i]), float(instances.scores[i])
        segments.append({"id": i + 1, "isthing": True, "category_id": category_id, "score": score})
    return ids, segments


def as_bgr(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of a grey, BGR or BGRA picture; see :class:`Predictor` for the errors."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise TypeError(f"A picture is a numpy array of uint8 values 0 to 255, not {kind}.")
    image = image[:, :, None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
        raise ValueError(
            f"A picture has the shape (H, W, 3), (H, W) or (H, W, 4), not {image.shape}."
        )
    if image.shape[2] == 3:
        return image
    return cv2.cvtColor(image, CHANNELS_TO_BGR[image.shape[2]])


def _find_categories(cfg: CfgNode) -> Categories:
    """Classes of the weights or the config's dataset, else numbered ones; sets class counts."""
    shipped = set_shipped_classes(cfg)
    if shipped is not None:
        return shipped
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    keys = configured_class(cfg).class_counts
    known = bool(keys) and not any(class_count_is_unset(cfg, key) for key in keys)
    try:
        prepare_datasets(cfg, check_files=False)
        if names:
            return dataset_categories(names[0])
    except FileNotFoundError:
        if not known:
            raise
    if not known:
        or_counts = f", or set {' and '.join(keys)}" if keys else ""
        raise ValueError(
            f"Name the dataset in DATASETS.TEST{or_counts}: the model's classes are not known."
        )
    logging.getLogger(__name__).warning(
        "Dataset (%s) not found: classes are shown by their numbers.",
        ", ".join(names) or "none named",
    )
    things, labels = [*(read_key(cfg, key) for key in keys), 0][:2]
    return Categories.from_json(
        [{"id": i, "name": f"thing {i}", "isthing": 1} for i in range(things)]
        + [{"id": things + i, "name": f"stuff {i}", "isthing": 0} for i in range(1, labels)]
    )
