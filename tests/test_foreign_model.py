"""A panoptic model that the package does not know goes the whole way: by registration alone.

Everything of the model is in this file: its layers, its losses and its merge. It shares nothing
with SpatialFlow and Detectron2's R-CNNs but :class:`spatialflow.modeling.PanopticModel`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import cv2
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ROIAlign, batched_nms, get_norm
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from recorded_run import run
from tiny_runs import CONFIG, tiny_config, tiny_overrides
from torch import nn

from spatialflow import Predictor
from spatialflow.cli import run_command
from spatialflow.engine import Trainer
from spatialflow.inference import load_model
from spatialflow.inference.optimized import OptimizedModel
from spatialflow.modeling import MERGE_REGISTRY, HeuristicMerge, Merge, PanopticModel
from spatialflow.modeling.panoptic_model import ClassLogits
from spatialflow.saved.raw_outputs import RawOutputs
from spatialflow.tools.benchmark.floors import Rates
from spatialflow.tools.benchmark.measure import by_step, end_to_end, training
from spatialflow.tools.benchmark.subjects import build

STRIDE, CHANNELS, CROP, MASK = 8, 32, 7, 14


@MERGE_REGISTRY.register()
@dataclass(frozen=True)
class PaintersMerge(Merge):
    """Stuff everywhere, and the things painted over it, the best last."""

    score_thresh: float = 0.4
    thing_labels: tuple[int, ...] = (0,)

    def from_labels(self, instances, stuff_labels, num_stuff_labels):
        panoptic = stuff_labels.int() + 1
        panoptic[torch.isin(stuff_labels, torch.tensor(self.thing_labels))] = 0
        wanted = [i for i in instances.scores.argsort() if instances.scores[i] > self.score_thresh]
        for number, i in enumerate(wanted):
            panoptic[instances.pred_masks[int(i)]] = num_stuff_labels + 1 + number
        segments = []
        for id_ in filter(None, panoptic.unique().tolist()):
            segment = {"id": id_, "isthing": id_ > num_stuff_labels, "category_id": id_ - 1}
            if segment["isthing"]:
                i = wanted[id_ - num_stuff_labels - 1]
                segment["category_id"] = int(instances.pred_classes[i])
                segment["score"] = float(instances.scores[i])
            segments.append(segment | {"area": int((panoptic == id_).sum())})
        return panoptic, segments


@META_ARCH_REGISTRY.register()
class GridNet(PanopticModel):
    """A box for each cell of a grid, masks from a linear layer, a stuff label for each cell."""

    nms_thresh = 0.4
    size_divisibility = STRIDE
    class_layers = ("class_head.", "stuff_head.")

    def __init__(self, cfg):
        super().__init__()
        things, labels = cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.trunk = nn.Sequential(
            Conv2d(3, CHANNELS, STRIDE, stride=STRIDE, bias=False, norm=get_norm("BN", CHANNELS)),
            nn.ReLU(),
            Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False, norm=get_norm("BN", CHANNELS)),
            nn.ReLU(),
        )
        self.class_head = nn.Conv2d(CHANNELS, things, 1)
        self.box_head = nn.Conv2d(CHANNELS, 4, 1)
        self.stuff_head = nn.Conv2d(CHANNELS, labels, 1)
        self.crop = ROIAlign((CROP, CROP), 1 / STRIDE, 0, aligned=True)
        self.mask_head = nn.Linear(CHANNELS * CROP**2, MASK**2)
        self.register_buffer("mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1), False)
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE
        self.merge = self.build_merge(cfg)

    @classmethod
    def build_merge(cls, cfg):
        return PaintersMerge(thing_labels=tuple(cfg.MODEL.SEM_SEG_HEAD.THING_LABELS))

    def preprocess_image(self, batched_inputs):
        images = [(x["image"].to(self.device) - self.mean) / 50 for x in batched_inputs]
        return ImageList.from_tensors(images, STRIDE)

    def dense(self, images):
        x = self.trunk(images)
        return {
            "features": x,
            "classes": self.class_head(x),
            "boxes": self.box_head(x).clamp(max=4).exp() * STRIDE,
            "stuff": self.stuff_head(x),
        }

    def losses(self, batched_inputs):
        images = self.preprocess_image(batched_inputs)
        dense = self.dense(images.tensor)
        classes, boxes = dense["classes"], dense["boxes"].movedim(1, -1)
        x, y = self._centers(classes.shape[-2:])
        loss = {}
        wanted, box_loss, mask_loss = torch.zeros_like(classes), boxes.sum() * 0, boxes.sum() * 0
        for i, image in enumerate(batched_inputs):
            truth = image["instances"].to(self.device)
            for (x1, y1, x2, y2), c in zip(truth.gt_boxes.tensor, truth.gt_classes, strict=True):
                sides = torch.stack([x - x1, y - y1, x2 - x, y2 - y], dim=-1)
                inside = sides.amin(dim=-1) > 0
                wanted[i, c][inside] = 1
                box_loss = box_loss + (boxes[i][inside] / sides[inside]).log().abs().sum()
            masks = self._mask_logits(dense["features"][i : i + 1], [truth.gt_boxes])
            crops = truth.gt_masks.crop_and_resize(truth.gt_boxes.tensor, MASK)
            mask_loss = mask_loss + F.binary_cross_entropy_with_logits(
                masks, crops.flatten(1).float(), reduction="sum"
            )
        loss["loss_class"] = F.binary_cross_entropy_with_logits(classes, wanted)
        loss["loss_box"] = box_loss / wanted.sum().clamp(min=1) / 4
        loss["loss_mask"] = mask_loss / len(batched_inputs) / MASK**2
        labels = ImageList.from_tensors([x["sem_seg"] for x in batched_inputs], STRIDE, 255).tensor
        scores = F.interpolate(dense["stuff"], scale_factor=STRIDE, mode="bilinear")
        loss["loss_stuff"] = F.cross_entropy(scores, labels.to(self.device), ignore_index=255)
        return loss

    def find_candidates(self, dense, image_sizes, output_sizes):
        x, y = self._centers(dense["classes"].shape[-2:])
        found = []
        for logits, sides, size, output_size in zip(
            dense["classes"], dense["boxes"], image_sizes, output_sizes, strict=True
        ):
            scores, classes = logits.sigmoid().max(dim=0)
            boxes = Boxes(
                torch.stack([x - sides[0], y - sides[1], x + sides[2], y + sides[3]], -1)[
                    scores > 0.05
                ]
            )
            boxes.clip(size)
            boxes.scale(output_size[1] / size[1], output_size[0] / size[0])
            instances = Instances(output_size, pred_boxes=boxes, scores=scores[scores > 0.05])
            instances.pred_classes = classes[scores > 0.05]
            found.append(instances[boxes.nonempty()])
        return found

    def select(self, candidates):
        boxes, scores = candidates.pred_boxes.tensor, candidates.scores
        kept = batched_nms(boxes, scores, candidates.pred_classes, self.nms_thresh)
        return candidates[kept[: self.max_detections]]

    def stuff_scores(self, dense, image_sizes, output_sizes):
        scores = F.interpolate(dense["stuff"], scale_factor=STRIDE, mode="bilinear")
        return [
            sem_seg_postprocess(one, size, *output_size)
            for one, size, output_size in zip(scores, image_sizes, output_sizes, strict=True)
        ]

    def mask_features(self, dense):
        return dense["features"]

    def predict_masks(self, features, instances, image_sizes):
        boxes = []
        for found, (height, width) in zip(instances, image_sizes, strict=True):
            boxes.append(found.pred_boxes.clone())
            boxes[-1].scale(width / found.image_size[1], height / found.image_size[0])
        masks = self._mask_logits(features, boxes).sigmoid()
        return list(masks.view(-1, MASK, MASK).split([len(b) for b in boxes]))

    def class_logits(self):
        return ClassLogits(self.class_head, has_background=False)

    def _mask_logits(self, features, boxes):
        rois = [F.pad(b.tensor, (1, 0), value=i) for i, b in enumerate(boxes)]
        return self.mask_head(self.crop(features, torch.cat(rois)).flatten(1))

    def _centers(self, grid):
        y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * STRIDE for n in grid), indexing="ij")
        return x.to(self.device), y.to(self.device)


GRIDNET = ["MODEL.META_ARCHITECTURE", "GridNet"]
FLIPPED = ["TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", [[160, 128], [120, 96]]]
SAVE = ["TEST.SAVE_PREDICTIONS", True, "TEST.SAVE_RAW_OUTPUTS", True]
ITERATIONS = 80


@pytest.fixture(scope="module")
def trained(toy_datasets, tmp_path_factory):
    """Path of the weights after a short training, and its losses."""
    output = tmp_path_factory.mktemp("gridnet")
    schedule = ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.005, "SOLVER.STEPS", ()]
    cfg = tiny_config(toy_datasets, output, ITERATIONS, [*GRIDNET, *schedule])
    _, rows = run(cfg)
    return output / "model_final.pth", rows


@pytest.fixture
def config(toy_datasets, trained, tmp_path):
    """Function from overrides to the config of the trained model."""

    def make(*overrides, folder=tmp_path):
        own = [*GRIDNET, "MODEL.WEIGHTS", trained[0], *overrides]
        return tiny_config(toy_datasets, folder, overrides=own)

    return make


@pytest.fixture
def image(toy_datasets):
    return cv2.imread(str(toy_datasets / "toy" / "val" / "00000.png"))


def test_it_trains_and_is_measured(trained):
    weights, rows = trained
    assert set(rows[0]) == {f"loss_{x}" for x in ("class", "box", "mask", "stuff")} | {"total_loss"}
    first, last = (sum(row["total_loss"] for row in part) for part in (rows[:8], rows[-8:]))
    assert last < 0.7 * first
    (results,) = json.loads((weights.parent / "results.json").read_text()).values()
    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg"]
    assert results["panoptic_seg"]["PQ"] > 1 and results["sem_seg"]["mIoU"] > 20
    assert results["bbox"]["AP50"] > 0 and results["segm"]["AP50"] > 0


def test_its_own_merge_is_swept_and_explained(config, tmp_path, capsys):
    cfg = config(*SAVE)
    results = Trainer.test(cfg, load_model(cfg))["panoptic_seg"]
    folder = tmp_path / "inference" / "tiny_val"
    assert RawOutputs.open(str(folder)).merge == PaintersMerge()
    rows = tmp_path / "rows.json"
    command = [str(folder), "--workers", "1", "--json-out", str(rows)]
    run_command("sweep", [*command, "--score-thresh", "0.2", "0.99"])
    table = {row["score_thresh"]: row for row in json.loads(rows.read_text())}
    assert [t for t, row in table.items() if row["is_config"]] == [0.4]
    for name in ("PQ", "PQ_th", "PQ_st"):
        assert table[0.4][name] == pytest.approx(results[name], abs=1e-9)
    assert table[0.99]["PQ_th"] == 0
    with pytest.raises(SystemExit, match="--overlap-thresh is not a setting of .*PaintersMerge"):
        run_command("sweep", [*command, "--overlap-thresh", "0.5"])
    run_command("explain", command)
    report = json.loads(rows.read_text())
    assert report["All"]["PQ"] == pytest.approx(results["PQ"], abs=1e-9)
    assert report["All"]["best merge"] >= results["PQ"]


def test_views_of_it(config, image):
    both = load_model(config(*FLIPPED))
    assert both.merge == PaintersMerge() and both.nms_thresh == GridNet.nms_thresh
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    plain, mirrored = (both([{"image": x}])[0] for x in (pixels, pixels.flip(-1)))
    torch.testing.assert_close(mirrored["sem_seg"].flip(-1), plain["sem_seg"], rtol=0, atol=1e-4)
    assert len(plain["instances"]) == len(mirrored["instances"]) > 0
    same = mirrored["panoptic_seg"][0].flip(-1) == plain["panoptic_seg"][0]
    assert same.float().mean() > 0.99
    cfg = config(*FLIPPED)
    assert Trainer.test(cfg, load_model(cfg))["panoptic_seg"]["PQ"] > 0


@pytest.fixture
def members(toy_datasets, trained, tmp_path):
    """Members of an ensemble: GridNet and a SpatialFlow that did not train."""
    opts = tiny_overrides(toy_datasets, tmp_path)
    spatialflow = str(tmp_path / "spatialflow.pth")
    model = Trainer.build_model(tiny_config(toy_datasets, tmp_path))
    torch.save({"model": model.state_dict()}, spatialflow)
    own = [*opts, *GRIDNET]
    return [
        {"CONFIG": str(CONFIG), "WEIGHTS": str(trained[0]), "OPTS": own, "WEIGHT": 3.0},
        {"CONFIG": str(CONFIG), "WEIGHTS": spatialflow, "OPTS": opts},
    ]


@pytest.mark.parametrize("answer", ["GridNet", "SpatialFlow"])
def test_ensemble_with_another_model(config, members, image, answer):
    """The merge is that of the model that the ensemble's config names."""
    as_ = ["MODEL.META_ARCHITECTURE", answer]
    together = config("TEST.ENSEMBLE.MEMBERS", members, *as_)
    merge = load_model(together).merge
    assert type(merge) is {"GridNet": PaintersMerge, "SpatialFlow": HeuristicMerge}[answer]
    found = Predictor(together)(image)
    parts = [Predictor(config("TEST.ENSEMBLE.MEMBERS", [m], *as_))(image) for m in members]
    mean = (3 * parts[0]["sem_seg"] + parts[1]["sem_seg"]) / 4
    torch.testing.assert_close(found["sem_seg"], mean, rtol=1e-4, atol=1e-4)
    assert found["instances"].pred_masks.shape[1:] == image.shape[:2]
    results = Trainer.test(together, load_model(together))
    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg"]


@pytest.mark.parametrize("views", [[], FLIPPED], ids=["plain", "views"])
def test_fast_path_of_it(config, image, views):
    fast = Predictor(config("TEST.OPTIMIZE.ENABLED", True, *views))
    optimized = fast.model.members[0].model if views else fast.model
    assert isinstance(optimized, OptimizedModel)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in optimized.modules())
    found, expected = fast(image), Predictor(config(*views))(image)
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-3, atol=1e-3)
    for name in ("scores", "pred_classes"):
        a, b = (x["instances"].get(name) for x in (found, expected))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    same = found["panoptic_seg"][0] == expected["panoptic_seg"][0]
    assert same.float().mean() > 0.99


def test_fast_path_of_it_in_half_precision_and_compiled(config, image):
    half = ["TEST.OPTIMIZE.ENABLED", True, "TEST.OPTIMIZE.DTYPE", "bfloat16"]
    found = Predictor(config(*half))(image)
    assert found["sem_seg"].dtype == found["instances"].scores.dtype == torch.float32
    model = load_model(config())
    images = model.preprocess_image([{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}])
    compiled = torch.compile(model.dense, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images.tensor), model.dense(images.tensor))


def test_predictor_of_it(config, image):
    predictor = Predictor(config())
    output = predictor(image)
    panoptic, segments = output["panoptic_seg"]
    assert panoptic.shape == image.shape[:2]
    described = predictor.segments(output)
    assert [s["id"] for s in described] == [s["id"] for s in segments]
    assert {s["isthing"] for s in described} == {True, False}
    assert predictor.draw(image, output).shape == image.shape


def test_its_class_layers(config, trained):
    reinit, only = (f"MODEL.CLASS_LAYERS.{key}" for key in ("REINIT", "TRAIN_ONLY"))
    trainer = Trainer(config(reinit, True, only, True, "DATASETS.TEST", (), "SOLVER.STEPS", ()))
    trainer.resume_or_load(resume=False)
    weights = torch.load(trained[0], weights_only=True)["model"]
    for name, parameter in trainer.model.named_parameters():
        own = name.startswith(("class_head.", "stuff_head."))
        assert parameter.requires_grad == own, name
        assert torch.equal(parameter, weights[name]) != own, name


@pytest.mark.parametrize("key", ["REINIT", "TRAIN_ONLY"])
def test_class_layers_that_nobody_named(config, monkeypatch, key):
    monkeypatch.setattr(GridNet, "class_layers", ())
    with pytest.raises(ValueError, match=rf"CLASS_LAYERS.{key} is True, but GridNet does not name"):
        Trainer(config(f"MODEL.CLASS_LAYERS.{key}", True))


def test_benchmark_times_it(config, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(config().dump())
    models = {name: build(str(file), "cpu") for name in ("GridNet", "another")}
    rows = end_to_end(models, "another", height=96, device="cpu", runs=2)
    names = [row["name"] for row in rows]
    assert "GridNet, optimized" in names and "another, optimized" not in names
    assert all(row["median"] > 0 and row["detections"] > 0 for row in rows)
    steps = {row["step"] for row in by_step(models, 96, "cpu", 2, Rates(1e9, 1e9))}
    assert {"preprocess", "candidates", "masks", "stuff at its size", "pasting, merge"} <= steps
    assert [row["name"] for row in training(models, "another", 96, "cpu", 2, 1)] == [*models]
