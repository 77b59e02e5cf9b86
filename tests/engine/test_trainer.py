"""Training: stopping and going on changes nothing, and a diverged loss stops it in time."""

import csv
import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from panopticapi.evaluation import pq_compute
from recorded_run import KilledBefore, Poison, everywhere, make_trainer, run
from tiny_runs import tiny_config

from spatialflow.engine import Trainer, build_optimizer
from spatialflow.engine.hooks import FiniteGuard
from spatialflow.errors import message_for_user


@pytest.fixture(scope="module")
def whole_run(toy_datasets, tmp_path_factory):
    """A run of four iterations: output folder, trainer and losses."""
    output = tmp_path_factory.mktemp("whole")
    trainer, rows = run(tiny_config(toy_datasets, output))
    return output, trainer, rows


def test_losses_are_those_of_the_paper_and_finite(whole_run):
    _, _, rows = whole_run
    assert len(rows) == 4
    assert set(rows[0]) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg", "total_loss"}
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in rows)


def test_stopped_and_resumed_equals_uninterrupted(whole_run, toy_datasets, tmp_path):
    _, whole, rows = whole_run
    _, first = run(tiny_config(toy_datasets, tmp_path, max_iter=2))
    second, last = run(tiny_config(toy_datasets, tmp_path, max_iter=4), resume=True)
    assert first + last == rows
    assert second.start_iter == 2
    for key, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_random_numbers_of_an_iteration_do_not_depend_on_what_came_before(toy_datasets, tmp_path):
    drawn = []
    for wasted in (0, 5):
        overrides = ["DATASETS.TEST", ()]
        trainer, _ = make_trainer(tiny_config(toy_datasets, tmp_path / str(wasted), 2, overrides))
        trainer.model.register_forward_hook(lambda *_: drawn.append(torch.rand(3).tolist()))
        torch.rand(wasted)
        trainer.train()
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]


def test_resuming_keeps_a_seed_that_was_drawn(toy_datasets, tmp_path):
    overrides = ["SEED", -1, "DATASETS.TEST", (), "SOLVER.STEPS", ()]
    first = Trainer(tiny_config(toy_datasets, tmp_path, 2, overrides))
    first.train()
    second = Trainer(tiny_config(toy_datasets, tmp_path, 3, overrides))
    assert second.cfg.SEED != first.cfg.SEED
    second.resume_or_load(resume=True)
    assert second.cfg.SEED == first.cfg.SEED >= 0


def test_resuming_without_a_checkpoint_starts_from_the_weights(whole_run, toy_datasets, tmp_path):
    output, whole, _ = whole_run
    weights = str(output / "model_final.pth")
    trainer = Trainer(tiny_config(toy_datasets, tmp_path, 4, ["MODEL.WEIGHTS", weights]))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    assert torch.equal(
        *(t.model.state_dict()["stuff_head.predictor.bias"] for t in (whole, trainer))
    )


def test_checkpoints_and_results_are_written(whole_run):
    output, whole, _ = whole_run
    assert {p.name for p in output.glob("*.pth")} == {
        "model_0000001.pth",
        "model_0000003.pth",
        "model_final.pth",
        "model_best.pth",
    }
    # The best checkpoint has weights only, so training never resumes from it.
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    best = torch.load(output / "model_best.pth", weights_only=True)
    assert set(best) == {"model", "iteration", "metrics"}
    results = json.loads((output / "results.json").read_text())
    assert set(results) == {"tiny_val"}
    assert set(results["tiny_val"]) == {"panoptic_seg", "bbox", "segm", "sem_seg"}
    assert list(output.glob("events.out.tfevents*"))


def test_several_datasets_give_one_table_one_json_and_one_csv(
    whole_run, toy_datasets, tmp_path, caplog
):
    _, whole, _ = whole_run
    names = ("tiny_val", "tiny_train")
    with caplog.at_level(logging.INFO):
        cfg = tiny_config(toy_datasets, tmp_path, 4, ["DATASETS.TEST", names])
        results = Trainer.test(cfg, whole.model)
    assert tuple(results) == names
    (text,) = [r.getMessage() for r in caplog.records if "PQ things" in r.getMessage()]
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert rows[0][:4] == ["dataset", "PQ", "PQ things", "PQ stuff"]
    assert [row[:2] for row in rows[2:]] == [
        [name, f"{results[name]['panoptic_seg']['PQ']:.2f}"] for name in names
    ]
    written = json.loads((tmp_path / "results.json").read_text())
    assert set(written) == set(names)
    with open(tmp_path / "results.csv", newline="") as f:
        numbers = list(csv.DictReader(f))
    found = {(n["dataset"], n["task"], n["metric"]): n["value"] for n in numbers}
    assert len(found) == len(numbers) == sum(len(m) for r in results.values() for m in r.values())
    for (name, task, metric), value in found.items():
        expected = written[name][task][metric]
        assert value == "" if expected is None else float(value) == expected


def test_predictions_are_saved_when_asked(whole_run, toy_datasets, tmp_path):
    _, whole, _ = whole_run
    Trainer.test(tiny_config(toy_datasets, tmp_path), whole.model)
    assert not (tmp_path / "inference").exists()
    saving = tiny_config(toy_datasets, tmp_path, 4, ["TEST.SAVE_PREDICTIONS", True])
    results = Trainer.test(saving, whole.model)
    saved = tmp_path / "inference" / "tiny_val"
    predicted, dataset = str(saved / "panoptic_predictions.json"), saved / "dataset.json"
    truth = json.loads(dataset.read_text())
    theirs = pq_compute(truth["panoptic_json"], predicted, truth["panoptic_root"])
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100 * theirs["All"]["pq"], abs=1e-9)
    images = json.loads(Path(predicted).read_text())["annotations"]
    segments = [s for image in images for s in image["segments_info"]]
    assert {"id", "category_id", "isthing", "area", "score"} in [set(s) for s in segments]


def scored_trainer(scores):
    """A Trainer whose evaluations give these PQs, one after the other."""
    remaining = iter(scores)

    class Scored(Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            return {"panoptic_seg": {"PQ": next(remaining)}}

    return Scored


def train_scored(trainer_class, cfg, resume):
    """Train, and return iteration and metrics in model_best.pth."""
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    best = torch.load(Path(cfg.OUTPUT_DIR, "model_best.pth"), weights_only=True)
    return best["iteration"], best["metrics"]


@pytest.mark.parametrize(
    ("period", "stop"),
    [(3, 3), (2, 3), (1, 2)],
    ids=["between", "kept by the checkpoint before", "at the checkpoint resumed from"],
)
def test_best_model_survives_resuming(toy_datasets, tmp_path, period, stop):
    """The best evaluation is at iteration 1, with and without a checkpoint of that iteration."""
    overrides = ["TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", period, "SOLVER.STEPS", ()]
    trainer = scored_trainer([10.0, 50.0, 20.0, 30.0, 25.0, 15.0])
    config = lambda n: tiny_config(toy_datasets, tmp_path, n, overrides)  # noqa: E731
    expected = (1, {"panoptic_seg/PQ": 50.0})
    first = trainer(config(6))
    first.register_hooks([KilledBefore(stop)])
    first.resume_or_load(resume=False)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert train_scored(trainer, config(5), resume=True) == expected


def test_a_run_that_does_not_resume_has_its_own_best_model(toy_datasets, tmp_path):
    overrides = ["TEST.EVAL_PERIOD", 1, "SOLVER.STEPS", ()]
    cfg = tiny_config(toy_datasets, tmp_path, 2, overrides)
    assert train_scored(scored_trainer([50.0, 50.0]), cfg, resume=False)[1] == {
        "panoptic_seg/PQ": 50.0
    }
    assert train_scored(scored_trainer([10.0, 10.0]), cfg, resume=False)[1] == {
        "panoptic_seg/PQ": 10.0
    }


def test_best_model_of_another_metric_is_replaced_with_a_warning(toy_datasets, tmp_path, caplog):
    overrides = ["TEST.EVAL_PERIOD", 1, "SOLVER.STEPS", ()]
    train_scored(scored_trainer([50.0, 50.0]), tiny_config(toy_datasets, tmp_path, 2, overrides), 0)
    two = [*overrides, "DATASETS.TEST", ("tiny_train", "tiny_val")]

    class Scored(Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            return {n: {"panoptic_seg": {"PQ": 10.0}} for n in cfg.DATASETS.TEST}

    best = train_scored(Scored, tiny_config(toy_datasets, tmp_path, 4, two), resume=True)
    assert best == (2, {"tiny_train/panoptic_seg/PQ": 10.0})
    assert "model_best.pth has no tiny_train/panoptic_seg/PQ" in caplog.text


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (0, {0, 1, 2, 3, 4, 5}),
        (1, {5}),
        (2, {4, 5}),
        (9, {0, 1, 2, 3, 4, 5}),
    ],
)
def test_as_many_checkpoints_are_kept_as_the_config_says(toy_datasets, tmp_path, keep, kept):
    overrides = ["SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.STEPS", (), "TEST.EVAL_PERIOD", 2]
    overrides += ["SOLVER.CHECKPOINT_MAX_TO_KEEP", keep]
    trainer = scored_trainer([50.0, 10.0, 10.0, 10.0])
    first = trainer(tiny_config(toy_datasets, tmp_path, 6, overrides))
    first.register_hooks([KilledBefore(4)])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    (tmp_path / "model_mine.pth").touch()
    train_scored(trainer, tiny_config(toy_datasets, tmp_path, 6, overrides), resume=True)
    names = {f"model_{i:07d}.pth" for i in kept}
    left = {path.name for path in tmp_path.glob("*.pth")}
    assert left == names | {"model_final.pth", "model_best.pth", "model_mine.pth"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_fewer_checkpoints_can_be_kept_after_resuming(toy_datasets, tmp_path):
    overrides = ["SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.STEPS", (), "DATASETS.TEST", ()]
    run(tiny_config(toy_datasets, tmp_path, 4, overrides))
    fewer = [*overrides, "SOLVER.CHECKPOINT_MAX_TO_KEEP", 2]
    run(tiny_config(toy_datasets, tmp_path, 5, fewer), resume=True)
    left = {path.name for path in tmp_path.glob("*.pth")}
    assert left == {"model_0000003.pth", "model_0000004.pth", "model_final.pth"}


def test_checkpoints_of_another_run_are_not_deleted(toy_datasets, tmp_path):
    overrides = ["SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.STEPS", (), "DATASETS.TEST", ()]
    run(tiny_config(toy_datasets, tmp_path, 4, overrides))
    (tmp_path / "last_checkpoint").unlink()
    run(tiny_config(toy_datasets, tmp_path, 1, [*overrides, "SOLVER.CHECKPOINT_MAX_TO_KEEP", 1]))
    assert len(list(tmp_path.glob("model_0*.pth"))) == 4


def test_negative_number_of_checkpoints_is_refused(toy_datasets, tmp_path):
    with pytest.raises(ValueError, match=r"SOLVER\.CHECKPOINT_MAX_TO_KEEP is -1"):
        Trainer(tiny_config(toy_datasets, tmp_path, 1, ["SOLVER.CHECKPOINT_MAX_TO_KEEP", -1]))


def test_nan_loss_stops_before_the_step(toy_datasets, tmp_path):
    trainer, recorder = make_trainer(tiny_config(toy_datasets, tmp_path, max_iter=6))
    trainer.model.register_forward_hook(Poison(3), prepend=True)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert "iteration 3" in str(error.value)
    assert "loss_mask nan" in str(error.value)
    loader = iter(Trainer.build_train_loader(trainer.cfg, start_iter=3))
    for image in next(loader):
        assert image["file_name"] in str(error.value)
    # Iteration 2 was the last to change anything, and 1 the last with a checkpoint.
    assert len(recorder.rows) == 3
    assert all(value.isfinite().all() for value in trainer.model.parameters())
    assert {p.name for p in tmp_path.glob("*.pth")} == {"model_0000001.pth"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


class Overflow(torch.autograd.Function):
    """x + 0, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


def test_gradient_that_is_not_finite_stops_before_the_step(toy_datasets, tmp_path):
    trainer, recorder = make_trainer(tiny_config(toy_datasets, tmp_path, max_iter=6))
    weights = []

    def overflow(module, inputs, output):
        if trainer.iter == 3 and module.training:
            weights.extend(p.detach().clone() for p in trainer.model.parameters())
            return Overflow.apply(output)
        return output

    trainer.model.thing_head.mask_head.predictor.register_forward_hook(overflow)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    message = str(error.value)
    assert message.startswith("The gradient (of finite losses) is not finite at iteration 3; ")
    assert "the weights were not changed" in message
    assert "gradient of backbone." in message and "loss_mask 0." in message
    for image in next(iter(Trainer.build_train_loader(trainer.cfg, start_iter=3))):
        assert image["file_name"] in message
    assert len(recorder.rows) == 3
    for before, after in zip(weights, trainer.model.parameters(), strict=True):
        assert torch.equal(before, after)
    assert {p.name for p in tmp_path.glob("*.pth")} == {"model_0000001.pth"}


@pytest.mark.parametrize("norm", ["SyncBN", "GN"])
def test_syncbn_in_one_process_is_said_when_it_trains(toy_datasets, tmp_path, caplog, norm):
    cfg = tiny_config(toy_datasets, tmp_path, 2, everywhere(norm))
    build_model(cfg).eval()
    assert "SyncBN" not in caplog.text
    Trainer(cfg)
    warnings = [r.getMessage() for r in caplog.records if "SyncBN is plain BN" in r.getMessage()]
    assert len(warnings) == (norm == "SyncBN")
    assert all("MODEL.RESNETS.NORM, MODEL.FPN.NORM, MODEL.ROI" in text for text in warnings)


def test_damaged_image_is_the_users_error(toy_datasets, tmp_path):
    trainer, _ = make_trainer(tiny_config(toy_datasets, tmp_path))
    trainer.data_loader.dataset.dicts = [{"file_name": "gone.png"}] * 12
    with pytest.raises(FileNotFoundError) as stop:
        trainer.train()
    assert message_for_user(stop.value) == "Image gone.png not found."


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_stopped_and_resumed_with_amp_keeps_the_scale(toy_datasets, tmp_path):
    overrides = ["MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", True]
    first, _ = run(tiny_config(toy_datasets, tmp_path, 2, overrides))
    first._trainer.grad_scaler.update(128.0)
    first.checkpointer.save("model_final")
    second = Trainer(tiny_config(toy_datasets, tmp_path, 4, overrides))
    second.resume_or_load(resume=True)
    assert second._trainer.grad_scaler.get_scale() == 128.0
    second.train()


@pytest.mark.parametrize(("precision", "scaled"), [("float16", True), ("bfloat16", False)])
def test_precision_of_amp_is_a_key(toy_datasets, tmp_path, monkeypatch, precision, scaled):
    made = []
    scaler = torch.amp.GradScaler

    def recorded(device, enabled):
        made.append(enabled)
        return scaler(device, enabled=False)  # there is no CUDA to scale for

    monkeypatch.setattr(torch.amp, "GradScaler", recorded)
    overrides = ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", precision]
    trainer = Trainer(tiny_config(toy_datasets, tmp_path, 2, overrides))
    assert trainer._trainer.precision == getattr(torch, precision)
    assert made == [scaled]
    # Without a scaler the gradients are looked at before each step.
    (guard,) = (h for h in trainer._trainer._hooks if isinstance(h, FiniteGuard))
    assert guard._amp == scaled


def test_unknown_precision_of_amp_is_refused(toy_datasets, tmp_path):
    overrides = ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "float32"]
    with pytest.raises(ValueError, match="AMP.PRECISION is 'float32'; give float16 or bfloat16"):
        Trainer(tiny_config(toy_datasets, tmp_path, 2, overrides))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_cuda_trains_with_amp_to_about_the_same_losses(toy_datasets, tmp_path, precision):
    rows = []
    for enabled in (False, True):
        overrides = ["MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", enabled]
        overrides += ["SOLVER.AMP.PRECISION", precision, "DATASETS.TEST", ()]
        rows.append(run(tiny_config(toy_datasets, tmp_path / str(enabled), 2, overrides))[1])
    for name, loss in rows[0][0].items():
        assert rows[1][0][name] == pytest.approx(loss, rel=0.05, abs=0.05)


class PlainTrainer(DefaultTrainer):
    """Detectron2's trainer as a script of one's own has it."""

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)


@pytest.mark.parametrize("trainer", [Trainer, PlainTrainer])
def test_optimizer_is_the_one_the_config_names(toy_datasets, tmp_path, trainer):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.GroupNorm(2, 4))
    overrides = ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.WEIGHT_DECAY_NORM", 0.0]
    cfg = tiny_config(toy_datasets, tmp_path, overrides=overrides)
    optimizer = trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays[id(model[0].weight)] == cfg.SOLVER.WEIGHT_DECAY > 0
    assert decays[id(model[1].weight)] == 0
    sgd = trainer.build_optimizer(tiny_config(toy_datasets, tmp_path), model)
    assert isinstance(sgd, torch.optim.SGD)


def test_unknown_optimizer_is_refused(toy_datasets, tmp_path):
    cfg = tiny_config(toy_datasets, tmp_path, overrides=["SOLVER.OPTIMIZER", "Lion"])
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER is 'Lion'"):
        Trainer.build_optimizer(cfg, torch.nn.Linear(2, 2))


def test_channels_last_changes_the_layout_and_not_the_losses(whole_run, toy_datasets, tmp_path):
    overrides = ["SOLVER.CHANNELS_LAST", True]
    trainer, rows = run(tiny_config(toy_datasets, tmp_path, overrides=overrides))
    weights = [p for p in trainer.model.parameters() if p.ndim == 4 and min(p.shape[1:3]) > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    _, _, expected = whole_run
    assert rows[0] == pytest.approx(expected[0], rel=1e-4)
