"""What the merge starts from, on disk: a small file an image, so that it can be merged again.

A folder of raw outputs has ``raw_outputs.json`` (:class:`RawOutputs`) and, under ``raw_outputs/``,
an ``.npz`` an image: boxes, scores and classes of the instances, their masks run-length encoded as
in COCO, and the stuff labels as a PNG; for a merge that reads them, the probabilities that were
predicted for their boxes as well. Nothing of it is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util
from torch import Tensor

from spatialflow.data.file_names import file_below
from spatialflow.modeling.panoptic import Merge
from spatialflow.utils.files import read_json, write_json

FOLDER = "raw_outputs"
INDEX = f"{FOLDER}.json"


def save_raw_output(path: str, instances: Instances, stuff_labels: Tensor) -> None:
    """Write the instances and stuff labels of one image.

    Args:
        path: path of the ``.npz``.
        instances: ``pred_boxes``, ``scores``, ``pred_classes``, ``pred_masks`` (N, H, W) bool and,
            if the merge reads them, ``pred_mask_probs`` (N, M, M).
        stuff_labels: (H, W) or (P, H, W) integers below 256, what the merge's ``labels_of`` gave.
    """
    masks = instances.pred_masks.cpu().numpy().view(np.uint8)
    # Encoded by columns; OpenCV's transposition is many times faster than numpy's or torch's.
    runs = [mask_util.encode(cv2.transpose(mask).T)["counts"] for mask in masks]
    rows = stuff_labels.flatten(0, -2)  # further maps below the first
    _, png = cv2.imencode(".png", rows.cpu().numpy().astype(np.uint8))
    probabilities = {}
    if instances.has("pred_mask_probs"):
        probabilities["mask_probs"] = instances.pred_mask_probs.cpu().numpy()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    np.savez_compressed(
        path,
        boxes=instances.pred_boxes.tensor.cpu().numpy(),
        scores=instances.scores.cpu().numpy(),
        classes=instances.pred_classes.cpu().numpy(),
        mask_runs=np.frombuffer(b"".join(runs), np.uint8),
        mask_ends=np.cumsum([len(r) for r in runs], dtype=np.int64),
        stuff_png=png,
        stuff_shape=np.array(stuff_labels.shape),
        **probabilities,
    )


def load_raw_output(path: str) -> tuple[Instances, Tensor]:
    """Read what :func:`save_raw_output` wrote, exactly as it was.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged or no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        rows = cv2.imdecode(arrays["stuff_png"], cv2.IMREAD_UNCHANGED)
        labels = rows.reshape(arrays.get("stuff_shape", rows.shape))  # once a single map
        runs, ends = arrays["mask_runs"].tobytes(), arrays["mask_ends"].tolist()
        rles = [
            {"size": list(labels.shape[-2:]), "counts": runs[start:end]}
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        masks = [cv2.transpose(mask_util.decode(rle).T) for rle in rles]
    except FileNotFoundError as e:
        raise FileNotFoundError(f"Raw output {path} not found.") from e
    except Exception as e:  # whatever zip, PNG and RLE readers raise on damaged data
        raise ValueError(f"Raw output {path} cannot be read: {type(e).__name__}: {e}") from e
    size = labels.shape[-2:]
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.from_numpy(arrays["boxes"]))
    instances.scores = torch.from_numpy(arrays["scores"])
    instances.pred_classes = torch.from_numpy(arrays["classes"])
    stack = np.array(masks, np.uint8).reshape(-1, *size)
    instances.pred_masks = torch.from_numpy(stack.view(bool))
    if "mask_probs" in arrays:
        instances.pred_mask_probs = torch.from_numpy(arrays["mask_probs"])
    return instances, torch.from_numpy(labels.astype(np.int64))


@dataclass(frozen=True)
class RawOutputs:
    """A folder of raw outputs, as its index describes it.

    Attributes:
        folder: folder of the index.
        merge: the merge of the evaluation.
        categories: ``id``, ``name`` and ``isthing`` of the dataset's categories.
        thing_ids, stuff_ids: category id of each thing class and stuff label; -1 for 'other'.
        truth: ``panoptic_root`` and ``panoptic_json`` of the ground truth; empty without any.
        files: the ``.npz`` below ``folder`` by image id.
    """

    folder: str
    merge: Merge
    categories: list[dict]
    thing_ids: list[int]
    stuff_ids: list[int]
    truth: dict[str, str]
    files: dict[Hashable, str]

    @classmethod
    def open(cls, folder: str) -> RawOutputs:
        """Read the index.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or its merge is not registered.
        """
        path = os.path.join(folder, INDEX)
        index = read_json(path, "Index", "evaluate with TEST.SAVE_RAW_OUTPUTS True first")
        try:
            files = {entry["image_id"]: entry["file_name"] for entry in index["images"]}
            for name in files.values():
                file_below(folder, name)
            merge = Merge.from_dict(index["merge"])
            keys = ("categories", "thing_ids", "stuff_ids", "truth")
            return cls(folder, merge, files=files, **{k: index[k] for k in keys})
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{path} is no index of raw outputs: {type(e).__name__}: {e}") from e

    def save(self) -> None:
        """Write the index."""
        images = [{"image_id": i, "file_name": name} for i, name in self.files.items()]
        keys = ("categories", "thing_ids", "stuff_ids", "truth")
        content = {"merge": self.merge.as_dict(), **{k: getattr(self, k) for k in keys}}
        os.makedirs(self.folder, exist_ok=True)
        write_json(os.path.join(self.folder, INDEX), {**content, "images": images})

    def load(self, image_id: Hashable) -> tuple[Instances, Tensor]:
        """Instances and stuff labels of an image; see :func:`load_raw_output`."""
        return load_raw_output(os.path.join(self.folder, self.files[image_id]))

    def merged(
        self, instances: Instances, stuff_labels: Tensor, merge: Merge
    ) -> tuple[np.ndarray, list[dict]]:
        """The panoptic map (H, W) and its segments, with the dataset's category ids."""
        id_map, segments = merge.from_labels(instances, stuff_labels, len(self.stuff_ids))
        for s in segments:
            ids = self.thing_ids if s["isthing"] else self.stuff_ids
            s["category_id"] = ids[s["category_id"]]
        return id_map.numpy(), segments
