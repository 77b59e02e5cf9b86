"""What is refused before anything is built."""

import re
import shlex

import pytest
import torch
from detectron2.utils import comm
from tiny_runs import CONFIG, tiny_overrides

from spatialflow.config import check_device, load_config
from spatialflow.engine import Trainer
from spatialflow.engine.setup import argument_parser, check_schedule, setup


def config(*overrides):
    return load_config(str(CONFIG), list(overrides))


def test_setup_registers_checks_freezes_and_logs(toy_datasets, tmp_path):
    overrides = tiny_overrides(toy_datasets, tmp_path)
    args = argument_parser().parse_args(["--config-file", str(CONFIG), *overrides])
    cfg = setup(args)
    assert cfg.is_frozen()
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 4
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 5
    assert (tmp_path / "config.yaml").exists()
    assert (tmp_path / "log.txt").exists()


def test_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device(config("MODEL.DEVICE", "cpu"))
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is 'cuda'.*MODEL\.DEVICE cpu"):
        check_device(config("MODEL.DEVICE", "cuda"))


def test_amp_needs_cuda():
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.ENABLED needs CUDA"):
        check_device(config("MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "True"))


@pytest.mark.parametrize(
    ("optimizer", "batch", "rate"),
    [("SGD", 4, 0.01), ("SGD", 32, 0.08), ("AdamW", 2, 0.01), ("AdamW", 32, 0.04)],
)
def test_other_batch_size_gives_overrides_that_fit_when_pasted(optimizer, batch, rate):
    """Linear scaling for SGD, square-root scaling for AdamW; the schedule is linear for both."""
    base = config(
        *("SOLVER.OPTIMIZER", optimizer),
        *("SOLVER.BASE_LR", "0.02", "SOLVER.MAX_ITER", "300", "SOLVER.STEPS", "(210, 270)"),
        *("SOLVER.WARMUP_ITERS", "50", "SOLVER.IMS_PER_BATCH", str(batch)),
    )
    assert base.SOLVER.REFERENCE_IMS_PER_BATCH == 8
    with pytest.raises(ValueError, match=rf"SOLVER\.IMS_PER_BATCH is {batch}.*of 8") as error:
        check_schedule(base)
    rule = {"SGD": "linear", "AdamW": "square-root"}[optimizer]
    assert f"by {rule} scaling of the learning rate for {optimizer}:" in str(error.value)
    pasted = re.search(r"^  (SOLVER\.BASE_LR .*)$", str(error.value), re.M)[1]
    base.merge_from_list(shlex.split(pasted))
    check_schedule(base)
    solver = base.SOLVER
    assert abs(solver.BASE_LR - rate) < 1e-9
    expected = [round(n * 8 / batch) for n in (300, 210, 270, 50)]
    assert [solver.MAX_ITER, *solver.STEPS, solver.WARMUP_ITERS] == expected


@pytest.mark.parametrize(("optimizer", "rate"), [("SGD", 0.04), ("AdamW", 0.02)])
def test_schedule_of_more_workers_has_the_rule_of_the_optimizer(optimizer, rate):
    cfg = config("SOLVER.OPTIMIZER", optimizer, "SOLVER.BASE_LR", "0.01")
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 2
    cfg.freeze()
    scaled = Trainer.auto_scale_workers(cfg, 8)
    assert abs(scaled.SOLVER.BASE_LR - rate) < 1e-9
    assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.MAX_ITER) == (32, 125)
    assert scaled.is_frozen() and cfg.SOLVER.BASE_LR == 0.01


def test_unknown_optimizer_is_refused_before_anything_is_built():
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'Lion'; give 'SGD' or 'AdamW'"):
        check_schedule(config("SOLVER.OPTIMIZER", "Lion"))


def test_other_batch_size_can_be_meant():
    cfg = config("SOLVER.IMS_PER_BATCH", "4")
    with pytest.raises(ValueError) as error:
        check_schedule(cfg)
    key, value = str(error.value).splitlines()[-1].split()
    cfg.merge_from_list([key, value])
    check_schedule(cfg)
    assert cfg.SOLVER.BASE_LR == config().SOLVER.BASE_LR


def test_evaluation_takes_any_batch_size(toy_datasets, tmp_path):
    overrides = [*tiny_overrides(toy_datasets, tmp_path), "SOLVER.IMS_PER_BATCH", "6"]
    parse = argument_parser().parse_args
    setup(parse(["--config-file", str(CONFIG), "--eval-only", *overrides]))
    with pytest.raises(ValueError, match="IMS_PER_BATCH"):
        setup(parse(["--config-file", str(CONFIG), *overrides]))


def test_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="multiple of their number, 3"):
        check_schedule(config())


def test_evaluation_does_without_the_training_set(toy_datasets, tmp_path):
    overrides = [*tiny_overrides(toy_datasets, tmp_path), "DATASETS.TRAIN", "('gone',)"]
    args = ["--config-file", str(CONFIG), *overrides]
    cfg = setup(argument_parser().parse_args(["--eval-only", *args]))
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 4
    with pytest.raises(ValueError, match="gone"):
        setup(argument_parser().parse_args(args))
