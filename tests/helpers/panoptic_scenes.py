"""Small panoptic datasets on disk, and outputs as a model without a mistake would give them."""

import json

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from panopticapi.utils import id2rgb

from spatialflow.data.targets import index_map, stuff_labels, thing_masks
from spatialflow.evaluation import PanopticGroundTruth

# Ids with gaps, one of them 0, and things after stuff.
CATEGORIES = [
    {"id": 0, "name": "grass", "isthing": 0},
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 4, "name": "dog", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
]


def segment(id, category_id, iscrowd=0):
    return {"id": id, "category_id": category_id, "iscrowd": iscrowd}


def two_images():
    """24x32: two cats and a dog on grass and sky; 16x16: a crowd of dogs, grass, void."""
    first = np.full((24, 32), 1000)
    first[:10] = 70000
    first[4:14, 2:12], first[6:16, 14:20], first[8:20, 22:31] = 1, 2, 3
    second = np.full((16, 16), 5)
    second[:4, :4], second[8:] = 0, 6
    return [
        (
            first,
            [segment(1000, 0), segment(70000, 9), segment(1, 3), segment(2, 3), segment(3, 4)],
        ),
        (second, [segment(5, 0), segment(6, 4, iscrowd=1)]),
    ]


def random_image(rng, size=(24, 32), max_segments=8, noise=0.1):
    """Overlapping boxes as ground truth; the prediction has them shifted, some relabelled."""
    height, width = size
    maps = np.zeros((2, height, width), dtype=np.int64)
    ids = rng.choice(np.arange(1, 256**3), size=(2, max_segments), replace=False)
    for k in range(rng.integers(1, max_segments + 1)):
        x, y = rng.integers(0, width - 4), rng.integers(0, height - 4)
        w, h = rng.integers(3, width // 2), rng.integers(3, height // 2)
        shift = rng.integers(0, 3)
        maps[0, y : y + h, x : x + w] = ids[0, k]
        maps[1, y + shift : y + h, x : x + w + shift] = ids[1, k]
    maps[:, rng.random(size) < noise] = 0
    labels = rng.choice([c["id"] for c in CATEGORIES], size=max_segments)
    crowd = rng.random(max_segments) < 0.2
    other = np.where(rng.random(max_segments) < 0.2, rng.permutation(labels), labels)
    lists = [
        [segment(int(i), int(c), int(w)) for i, c, w in zip(*row, strict=True) if (m == i).any()]
        for m, row in zip(maps, ((ids[0], labels, crowd), (ids[1], other, crowd)), strict=True)
    ]
    return maps[1], lists[1], maps[0], lists[0]


def write_panoptic(folder, images, categories=CATEGORIES):
    """Write id maps and segments as a dataset; returns the paths a registration takes."""
    (folder / "images").mkdir()
    (folder / "png").mkdir()
    content = {"images": [], "annotations": [], "categories": categories}
    for i, (id_map, segments) in enumerate(images):
        name = f"scene{i}"
        height, width = id_map.shape
        cv2.imwrite(str(folder / "png" / f"{name}.png"), id2rgb(id_map)[..., ::-1])
        cv2.imwrite(str(folder / "images" / f"{name}.jpg"), np.zeros((height, width, 3), np.uint8))
        content["images"].append(
            {"id": i, "file_name": f"{name}.jpg", "height": height, "width": width}
        )
        segments = [{"area": int((id_map == s["id"]).sum()), **s} for s in segments]
        content["annotations"].append(
            {"image_id": i, "file_name": f"{name}.png", "segments_info": segments}
        )
    (folder / "panoptic.json").write_text(json.dumps(content))
    return str(folder / "images"), str(folder / "png"), str(folder / "panoptic.json")


def write_results(folder, images):
    """Write predicted id maps and segments by image number as COCO panoptic results."""
    png = folder / "predicted"
    png.mkdir()
    annotations = []
    for i, (id_map, segments) in images.items():
        cv2.imwrite(str(png / f"p{i}.png"), id2rgb(id_map.astype(np.int64))[..., ::-1])
        segments = [{"id": s["id"], "category_id": s["category_id"]} for s in segments]
        annotations.append({"image_id": i, "file_name": f"p{i}.png", "segments_info": segments})
    path = folder / "predicted.json"
    path.write_text(json.dumps({"annotations": annotations}))
    return path


def inputs_of(dataset_name):
    """What a test loader gives the evaluators, one dict an image."""
    names = PanopticGroundTruth(dataset_name).png_names
    return [{"image_id": i, "file_name": n} for i, n in names.items()]


def perfect_output(ground_truth, image_id):
    """The model's output dict for an image of which it gets everything right."""
    truth, classes = ground_truth.load(image_id), ground_truth.categories.segment_classes
    segments = [{**s, **vars(classes[s["category_id"]])} for s in truth.segments]
    index = index_map(truth.id_map, segments, truth.png)
    masks, boxes, labels = thing_masks(index, segments)
    instances = Instances(index.shape)
    instances.pred_boxes = Boxes(torch.from_numpy(boxes))
    instances.scores = torch.linspace(0.9, 0.5, len(masks))
    instances.pred_classes = torch.from_numpy(labels)
    instances.pred_masks = torch.from_numpy(masks)
    labels = torch.from_numpy(stuff_labels(index, segments).astype(np.int64))
    labels[labels == 255] = 0
    scores = torch.nn.functional.one_hot(labels, len(ground_truth.categories.stuff))
    kept = [s for s in segments if not s.get("iscrowd")]
    crowd_ids = [s["id"] for s in segments if s.get("iscrowd")]
    id_map = np.where(np.isin(truth.id_map, crowd_ids), 0, truth.id_map)
    return {
        "panoptic_seg": (torch.from_numpy(id_map.astype(np.int32)), kept),
        "instances": instances,
        "sem_seg": scores.permute(2, 0, 1).float(),
    }


def detections(size, *found):
    """Instances from (x1, y1, x2, y2, class, score); the masks fill the boxes."""
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor([f[:4] for f in found]).reshape(-1, 4).float())
    instances.pred_classes = torch.tensor([f[4] for f in found], dtype=torch.int64)
    instances.scores = torch.tensor([f[5] for f in found], dtype=torch.float32)
    masks = torch.zeros((len(found), *size), dtype=torch.bool)
    for mask, (x1, y1, x2, y2, *_) in zip(masks, found, strict=True):
        mask[y1:y2, x1:x2] = True
    instances.pred_masks = masks
    return {"instances": instances}


def evaluate(evaluator, inputs, outputs):
    """Run an evaluator over images one by one."""
    evaluator.reset()
    for image, output in zip(inputs, outputs, strict=True):
        evaluator.process([image], [output])
    return evaluator.evaluate()


def evaluate_perfect(evaluator, dataset_name):
    ground_truth = PanopticGroundTruth(dataset_name)
    inputs = inputs_of(dataset_name)
    outputs = (perfect_output(ground_truth, i["image_id"]) for i in inputs)
    return evaluate(evaluator, inputs, outputs)
