"""What people do with Detectron2's own models works with SpatialFlow.

Counting and tracing, lazy configs, a script with Detectron2's trainer, predictor, evaluators and
visualizers, and models by name.
"""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path

import cv2
import fvcore.nn
import pytest
import torch
from builders import make_input, tiny_detector, tiny_model
from detectron2 import model_zoo as detectron2_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.engine import DefaultPredictor, SimpleTrainer, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.analysis import (
    FlopCountAnalysis,
    activation_count_operators,
    flop_count_operators,
)
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer
from tiny_runs import CONFIG, tiny_config, tiny_overrides

from spatialflow import model_zoo
from spatialflow.modeling.panoptic import HeuristicMerge

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "GUIDE.md"
LAZY = "lazy/spatialflow_toy.py"
YAML = "toy/spatialflow_toy.yaml"


# Counting and tracing


@pytest.fixture
def finder():
    """A model that finds more things than its mask head takes at a time."""
    model = tiny_model(merge=HeuristicMerge(stuff_area_limit=64))
    model.detector = tiny_detector(prior_prob=0.4)
    return model.eval()


def image_of(size=(64, 96), seed=0):
    return [{"image": make_input(size, seed=seed)["image"]}]


def trace(adapter):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Detectron2's structures have conditions on shapes
        return torch.jit.trace(adapter, adapter.flattened_inputs)


def test_counters__model_that_merges(finder):
    image = image_of()
    assert len(finder(image)[0]["instances"]) > 64
    flops = FlopCountAnalysis(finder, image)
    by_module = flops.by_module()
    parts = [by_module[f"model.{k}"] for k in ("backbone", "subnets", "detector", "stuff_head")]
    assert all(parts) and flops.total() > sum(parts)
    assert by_module["model.backbone.stem"] == 8 * 12 * 16 * 3 * 8 * 8
    assert flop_count_operators(finder, image)["conv"] == flops.by_operator()["conv"] / 1e9
    stem_only = finder.backbone.stem
    activations = activation_count_operators(finder, image)["conv"] * 1e6
    assert activations > 8 * 12 * stem_only.out_channels
    adapter = TracingAdapter(finder, image, allow_non_tensor=True)
    counted = fvcore.nn.ActivationCountAnalysis(adapter, adapter.flattened_inputs)
    assert counted.by_operator()["conv"] == pytest.approx(activations)


def test_trace__other_images__results_of_the_model(finder):
    merge, finder.merge = finder.merge, None
    adapter = TracingAdapter(finder, image_of())
    traced = trace(adapter)
    counts = set()
    for size, seed in (((64, 96), 0), ((64, 96), 3), ((90, 130), 1)):
        image = image_of(size, seed)
        (found,) = adapter.outputs_schema(traced(image[0]["image"]))
        (expected,) = finder(image)
        assert torch.equal(found["sem_seg"], expected["sem_seg"])
        fields = expected["instances"].get_fields()
        for name, value in fields.items():
            other = found["instances"].get(name)
            if isinstance(value, Boxes):
                value, other = value.tensor, other.tensor
            assert torch.equal(other, value), name
        assert fields["pred_masks"].shape[1:] == size
        counts.add(len(fields["scores"]))
        finder.merge = merge
        panoptic, segments = merge(found["instances"], found["sem_seg"])
        (whole,) = finder(image)
        finder.merge = None
        assert torch.equal(panoptic, whole["panoptic_seg"][0])
        assert segments == whole["panoptic_seg"][1] != []
    assert len(counts) > 1 and min(counts) > 64


def test_trace__model_that_merges__says_what_to_do(finder):
    adapter = TracingAdapter(finder, image_of())
    with pytest.warns(torch.jit.TracerWarning, match=r"COMBINE\.ENABLED False .*HeuristicMerge"):
        torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    maps_alone = TracingAdapter(finder, image_of(), lambda m, x: m.panoptic_inference(x))
    with pytest.raises(RuntimeError, match="no panoptic output"):
        trace(maps_alone)


def test_trace__toy_config(toy_datasets, tmp_path):
    combine = ["MODEL.PANOPTIC_FPN.COMBINE.ENABLED", False]
    model = build_model(tiny_config(toy_datasets, tmp_path, overrides=combine)).eval()
    adapter = TracingAdapter(model, image_of((128, 160)))
    traced = trace(adapter)
    other = image_of((128, 160), 1)
    (found,) = adapter.outputs_schema(traced(other[0]["image"]))
    (expected,) = model(other)
    assert torch.equal(found["instances"].pred_masks, expected["instances"].pred_masks)
    assert len(expected["instances"])


# Lazy configs


@pytest.fixture
def tiny(toy_datasets, tmp_path):
    """A tiny config, whose datasets are registered."""
    return tiny_config(toy_datasets, tmp_path)


@pytest.fixture
def lazy_config(tiny, tmp_path):
    """The lazy config of the zoo for a few iterations."""
    cfg = model_zoo.get_config(LAZY)
    for evaluator in cfg.dataloader.evaluator.evaluators:
        evaluator.ground_truth.dataset_name = "tiny_val"
    overrides = [
        "dataloader.train.dataset.name=tiny_train",
        "dataloader.test.dataset.name=tiny_val",
    ]
    overrides += ["dataloader.train.total_batch_size=2", "train.max_iter=2", "train.eval_period=2"]
    return LazyConfig.apply_overrides(cfg, [*overrides, f"train.output_dir={tmp_path}"])


def evaluate_lazily(cfg, model):
    """What do_test of Detectron2's lazyconfig_train_net.py does."""
    evaluator = instantiate(cfg.dataloader.evaluator)
    return inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator)


def test_lazy_config__trains_and_evaluates(lazy_config):
    """The steps of do_train of Detectron2's lazyconfig_train_net.py."""
    cfg = lazy_config
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    trainer = SimpleTrainer(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    results = []
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            hooks.EvalHook(
                cfg.train.eval_period, lambda: results.append(evaluate_lazily(cfg, model))
            ),
        ]
    )
    checkpointer.load(cfg.train.init_checkpoint)
    before = [p.detach().clone() for p in model.parameters()]
    trainer.train(0, cfg.train.max_iter)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    (measured,) = results
    assert {"panoptic_seg", "bbox", "segm", "sem_seg"} <= measured.keys()
    assert (Path(cfg.train.output_dir) / "model_final.pth").is_file()


def test_lazy_config__model_of_the_yaml_config():
    lazy = instantiate(model_zoo.get_config(LAZY).model)
    cfg = model_zoo.get_config(YAML)
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4, 5
    shapes = {name: x.shape for name, x in lazy.state_dict().items()}
    assert shapes == {name: x.shape for name, x in build_model(cfg).state_dict().items()}
    assert lazy.merge == build_model(cfg).merge


# A script with Detectron2's own parts


@pytest.fixture(scope="module")
def script(toy_datasets, tmp_path_factory):
    """What the guide's script leaves behind, on few scenes and for few iterations."""
    code = re.search(r"own Detectron2 script\n.*?```python\n(.*?)```", GUIDE.read_text(), re.S)[1]
    folder = tmp_path_factory.mktemp("script")
    overrides = [*tiny_overrides(toy_datasets, folder, 2), "SOLVER.STEPS", "()"]
    small = f"cfg.merge_from_list({overrides!r})\nprepare_datasets(cfg)"
    code = code.replace("configs/toy/spatialflow_toy.yaml", str(CONFIG))
    assert code.count("prepare_datasets(cfg)\n") == 1
    names = {}
    exec(code.replace("prepare_datasets(cfg)", small), names)
    return names


def test_script__trains_and_evaluates(script):
    results = script["trainer"]._last_eval_results
    assert set(results) == {"panoptic_seg"} and results["panoptic_seg"]["PQ"] >= 0
    weights = Path(script["cfg"].OUTPUT_DIR) / "model_final.pth"
    assert weights.is_file()


def test_script__predictor_and_visualizers(script, toy_datasets):
    cfg = script["cfg"].clone()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    image = cv2.imread(str(toy_datasets / "toy" / "val" / "00000.png"))
    output = DefaultPredictor(cfg)(image)
    panoptic, segments = output["panoptic_seg"]
    assert panoptic.shape == image.shape[:2] and len(output["instances"])
    metadata = MetadataCatalog.get("tiny_val")
    drawn = Visualizer(image[:, :, ::-1], metadata).draw_panoptic_seg(panoptic, segments)
    assert drawn.get_image().shape == image.shape
    instances = output["instances"].to("cpu")
    video = VideoVisualizer(metadata)
    for _ in range(2):
        drawn = video.draw_instance_predictions(image[:, :, ::-1], instances)
    assert drawn.get_image().shape == image.shape


def test_script__class_layers_alone_are_trained_whoever_trains(toy_datasets, tmp_path):
    only = ["MODEL.CLASS_LAYERS.TRAIN_ONLY", True]
    model = build_model(tiny_config(toy_datasets, tmp_path, overrides=only))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith(model.class_layers), name


def test_script__detectron2s_mapper_is_answered_with_what_is_missing(tiny):
    loader = build_detection_train_loader(tiny)
    with pytest.raises(ValueError, match="PanopticMapper"):
        build_model(tiny)(next(iter(loader)))


# Models by name


@pytest.mark.parametrize("name", ["get", "get_config", "get_config_file", "get_checkpoint_url"])
def test_model_zoo__signatures_are_detectron2s(name):
    ours, theirs = (
        inspect.signature(getattr(zoo, name)).parameters for zoo in (model_zoo, detectron2_zoo)
    )
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_model_zoo__weights_that_nobody_released():
    unreleased = "COCO/spatialflow_R_50_20e.yaml"
    for ask in (
        model_zoo.get_checkpoint_url,
        lambda name: model_zoo.get_config(name, trained=True),
        lambda name: model_zoo.get(name, trained=True),
    ):
        with pytest.raises(RuntimeError, match=f"No trained weights .* for {unreleased}"):
            ask(unreleased)
    with pytest.raises(ValueError, match="There is no config 'toy/spatialflow_toys.yaml'"):
        model_zoo.get_checkpoint_url("toy/spatialflow_toys.yaml")


@pytest.mark.parametrize("name", [YAML, LAZY])
def test_model_zoo__model(name, toy_datasets, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy_datasets))
    model = model_zoo.get(name, device="cpu")
    assert model.training and model.detector.num_classes == 4
    for dataset in ("toy_panoptic_train", "toy_panoptic_val"):
        if dataset in DatasetCatalog:
            DatasetCatalog.remove(dataset)
            MetadataCatalog.remove(dataset)
