"""From a dataset dict to the model's input: reading, augmenting, deriving the targets."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image

from spatialflow.config import takes_original_images

from . import targets
from .shards import PREFIX, read_file


class _FilesInShards(PathHandler):
    """Lets whatever reads by Detectron2's PathManager read files in shards."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> io.BytesIO:
        return io.BytesIO(read_file(path))


PathManager.register_handler(_FilesInShards())


class ImageKindError(ValueError):
    """An image of more than 8 bits a channel, which Pillow would clip to white or black."""


class Cv2ResizeTransform(T.ResizeTransform):
    """Resize by OpenCV: bilinear without antialiasing for images, nearest for labels."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an (H, W) or (H, W, C) array."""
        flag = cv2.INTER_NEAREST if interp == Image.Resampling.NEAREST else cv2.INTER_LINEAR
        return cv2.resize(np.ascontiguousarray(img), (self.new_w, self.new_h), interpolation=flag)


class PilResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's resize, where a side that it would round to 0 pixels gets 1."""

    transform: type[T.ResizeTransform] = T.ResizeTransform

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Sample the shorter edge and return the transform for an (H, W, C) image."""
        resize = super().get_transform(image)
        if isinstance(resize, T.NoOpTransform):
            return resize
        new_size = max(resize.new_h, 1), max(resize.new_w, 1)
        return self.transform(resize.h, resize.w, *new_size, self.interp)


class Cv2ResizeShortestEdge(PilResizeShortestEdge):
    """The same with the pixels of the authors' pipeline."""

    transform = Cv2ResizeTransform


class FixedResize(T.Augmentation):
    """Resize to one size, whatever the shape of the image.

    Args:
        size: height and width.
        transform: the transform that resizes.
    """

    def __init__(self, size: Sequence[int], transform: type[T.ResizeTransform]):
        super().__init__()
        self.size = tuple(size)
        self.transform = transform

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The transform for an (H, W, C) image."""
        return self.transform(*image.shape[:2], *self.size, Image.Resampling.BILINEAR)


RESIZE_WITH = {"pil": PilResizeShortestEdge, "cv2": Cv2ResizeShortestEdge}


def build_resize(
    cfg: CfgNode, shorter: int | Sequence[int], longer: int, sample_style: str = "choice"
) -> T.Augmentation:
    """The resize to INPUT.FIXED_SIZE if there is one, otherwise by the shorter side.

    The latter is Detectron2's, by the library that the config names, to 1 pixel a side at least.

    Args:
        cfg: INPUT.RESIZE_WITH and INPUT.FIXED_SIZE are read.
        shorter: the shorter side in pixels, or what to sample it from.
        longer: the longer side at most, in pixels.
        sample_style: ``sample_style`` of Detectron2's ``ResizeShortestEdge``.

    Raises:
        ValueError: INPUT.RESIZE_WITH is neither "pil" nor "cv2"; INPUT.FIXED_SIZE is no height and
            width.
    """
    if cfg.INPUT.RESIZE_WITH not in RESIZE_WITH:
        raise ValueError(f'INPUT.RESIZE_WITH is "pil" or "cv2", not {cfg.INPUT.RESIZE_WITH!r}.')
    resize = RESIZE_WITH[cfg.INPUT.RESIZE_WITH]
    size = cfg.INPUT.FIXED_SIZE
    if not len(size):
        return resize(shorter, longer, sample_style)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"INPUT.FIXED_SIZE is {size}; give a height and a width in pixels, or ().")
    return FixedResize(size, resize.transform)


class PanopticMapper(DatasetMapper):
    """Reads and augments one image and derives its targets.

    In training it returns ``image``, ``height``, ``width``, ``file_name``, ``image_id`` and the
    targets ``instances``, ``sem_seg`` and ``crowd_mask``; in inference the first five only.
    Targets come from the panoptic PNG, or, for Detectron2's ``*_panoptic_separated`` dicts, from
    instance annotations and semantic PNGs. Things that an augmentation leaves no pixel of are gone.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments of the constructor from the INPUT keys.

        Raises:
            ValueError: INPUT.RESIZE_WITH is neither "pil" nor "cv2".
        """
        args = super().from_config(cfg, is_train)
        if not is_train and takes_original_images(cfg):
            args["augmentations"] = []
        args["augmentations"] = [
            build_resize(cfg, a.short_edge_length, a.max_size, a.sample_style)
            if isinstance(a, T.ResizeShortestEdge)
            else a
            for a in args["augmentations"]
        ]
        if is_train and cfg.INPUT.CROP.ENABLED:
            # "512x1024 image crops after scaling" (Sec. IV-B); Detectron2 crops before.
            crop, resize, *others = args["augmentations"]
            args["augmentations"] = [resize, crop, *others]
        # Boxes are made tight here, because Detectron2 fails on images without instances.
        args.update(use_instance_mask=True, instance_mask_format="bitmask", recompute_boxes=False)
        return args

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map the dict of one image; it is left as it is.

        Raises:
            FileNotFoundError: the image or its PNG is missing.
            ValueError: one cannot be read, sizes differ, or PNG and segments have different ids.
        """
        dataset_dict = dict(dataset_dict)
        image = read_image(dataset_dict["file_name"], self.image_format)
        detection_utils.check_image_size(dataset_dict, image)
        labels = (
            self._read_labels(dataset_dict, (image.shape[0], image.shape[1]))
            if self.is_train
            else None
        )
        aug_input = T.AugInput(image, sem_seg=labels)
        transforms = self.augmentations(aug_input)
        sample = {k: dataset_dict[k] for k in ("file_name", "image_id", "height", "width")}
        chw = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        sample["image"] = torch.as_tensor(chw)
        if self.is_train:
            labels = _from_planes(aug_input.sem_seg)
            if "segments_info" in dataset_dict:
                sample.update(_panoptic_targets(labels, dataset_dict["segments_info"]))
            else:
                sample.update(self._separated_targets(dataset_dict, labels, transforms))
        return sample

    def _read_labels(self, dataset_dict: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
        """Index map, or stuff labels for separated dicts, as (H, W, C) byte planes."""
        if "segments_info" in dataset_dict:
            file_name = dataset_dict["pan_seg_file_name"]
            ids = targets.read_panoptic_png(file_name)
            _check_size(ids, size, file_name, dataset_dict["file_name"])
            index = targets.index_map(ids, dataset_dict["segments_info"], file_name)
            # Detectron2 resizes bytes only, so an index map of 16 bits is a picture of two planes.
            return index.view(np.uint8).reshape(*size, index.itemsize)
        labels = read_image(dataset_dict["sem_seg_file_name"], "L")
        _check_size(labels, size, dataset_dict["sem_seg_file_name"], dataset_dict["file_name"])
        return labels

    def _separated_targets(
        self, dataset_dict: dict[str, Any], labels: np.ndarray, transforms: T.TransformList
    ) -> dict[str, Any]:
        annotations = copy.deepcopy(dataset_dict["annotations"])
        crowd_mask = np.zeros(labels.shape, bool)
        for annotation in annotations:
            if annotation.get("iscrowd", 0):
                region = detection_utils.transform_instance_annotations(
                    copy.deepcopy(annotation), transforms, labels.shape
                )
                crowd_mask |= region["segmentation"].astype(bool)
        mapped = {"annotations": annotations}
        self._transform_annotations(mapped, transforms, labels.shape)
        instances = mapped["instances"]
        if not instances.has("gt_masks"):
            instances.gt_masks = BitMasks(torch.zeros((0, *labels.shape), dtype=torch.bool))
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return {
            "instances": instances,
            "sem_seg": torch.from_numpy(labels.astype(np.int64)),
            "crowd_mask": torch.from_numpy(crowd_mask),
        }


def _panoptic_targets(index: np.ndarray, segments: targets.Segments) -> dict[str, Any]:
    masks, boxes, classes = targets.thing_masks(index, segments)
    instances = Instances(index.shape)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.from_numpy(classes)
    instances.gt_masks = BitMasks(torch.from_numpy(masks))
    return {
        "instances": instances,
        "sem_seg": torch.from_numpy(targets.stuff_labels(index, segments).astype(np.int64)),
        "crowd_mask": torch.from_numpy(targets.crowd_mask(index, segments)),
    }


def _from_planes(planes: np.ndarray) -> np.ndarray:
    """(H, W[, C]) byte planes -> (H, W) integers of C bytes."""
    planes = np.ascontiguousarray(planes).reshape(*planes.shape[:2], -1)
    return planes.view(f"<u{planes.shape[-1]}")[..., 0]


def read_image(file_name: str, image_format: str) -> np.ndarray:
    """(H, W, C) uint8 image, turned as its EXIF data says.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no image, a damaged one or one of more pixels than Pillow opens.
        ImageKindError: it is grey of 16 or 32 bits, or has floats.
    """
    try:
        with PathManager.open(file_name, "rb") as f, Image.open(f) as image:  # the header only
            mode = image.mode
        if mode.startswith(("I", "F")):
            raise ImageKindError(
                f"Image {file_name} has pixels of 16 or 32 bits or floats (Pillow's mode {mode}), "
                "most of which would become white or black; convert it to 8 bits, scaled as suits "
                "the data."
            )
        return detection_utils.read_image(file_name, image_format)
    except FileNotFoundError as e:
        raise FileNotFoundError(f"Image {file_name} not found.") from e
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:  # Pillow raises any of them
        raise ValueError(f"Image {file_name} cannot be read, replace it: {e}") from e


def _check_size(labels: np.ndarray, size: tuple[int, int], file_name: str, image: str) -> None:
    if labels.shape[:2] != size:
        raise ValueError(
            f"{file_name} is {labels.shape[1]}x{labels.shape[0]} (width x height), but its image "
            f"{image} is {size[1]}x{size[0]}. They must have the same size."
        )
