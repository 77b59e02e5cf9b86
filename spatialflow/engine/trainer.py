"""The trainer: Detectron2's DefaultTrainer with exact resuming, on CPU and CUDA processes."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import detectron2.engine.hooks
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn
from torch.utils.data import DataLoader

from spatialflow.checkpoint import SafeCheckpointer
from spatialflow.data import build_test_loader, build_train_loader
from spatialflow.evaluation import build_evaluator, format_comparison, format_results
from spatialflow.evaluation.tables import write_csv
from spatialflow.inference import with_views
from spatialflow.inference.load import AUTOCAST_DTYPES
from spatialflow.modeling.class_layers import class_layers_of, train_only_class_layers
from spatialflow.modeling.norms import warn_of_syncbn_in_one_process
from spatialflow.modeling.panoptic_model import PanopticModel
from spatialflow.utils.files import without_nan, write_json

from .ema import WeightAverage
from .hooks import BestModelCheckpointer, FiniteGuard, PeriodicCheckpointer
from .optimizer import auto_scale_workers, build_optimizer
from .parts import InParts
from .resuming import OneRunOfMetrics, StopOnSignal, batching, check_batching


class Trainer(DefaultTrainer):
    """Trains and evaluates what a config says.

    A run that is stopped and resumed gives the losses of one that was not: the checkpoint holds
    weights, optimizer, schedule, gradient scaler and iteration; random numbers and the data stream
    are functions of seed and iteration. SIGTERM and SIGUSR1 stop it, see :mod:`.resuming`.

    Args:
        cfg: see :mod:`spatialflow.config`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own __init__ hands device ids to DistributedDataParallel, which refuses
        # them on the CPU; its methods are used as they are.
        TrainerBase.__init__(self)
        if cfg.TEST.ENSEMBLE.MEMBERS:
            raise ValueError("TEST.ENSEMBLE.MEMBERS: an ensemble is for --eval-only and demo.py.")
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = _with_seed(cfg, cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())
        warn_of_syncbn_in_one_process(cfg)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._class_layers = class_layers_of(cfg)
        model = self.build_model(cfg)
        if cfg.SOLVER.CHANNELS_LAST:
            model = model.to(memory_format=torch.channels_last)
        optimizer = self.build_optimizer(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        parallel = {} if cfg.MODEL.DEVICE.startswith("cuda") else {"device_ids": None}
        parallel_model = create_ddp_model(model, broadcast_buffers=False, **parallel)
        self._evaluated, self._average = model, None
        if cfg.SOLVER.EMA_DECAY:
            self._average = WeightAverage(model, cfg.SOLVER.EMA_DECAY)
            self._evaluated = self._average.model
            self.register_hooks([self._average])
        make_trainer, scaled = _inner_trainer(cfg)
        self._trainer = make_trainer(parallel_model, self.build_train_loader(self.cfg), optimizer)
        self._take_apart(cfg.SOLVER.BATCH_PARTS)
        self._trainer.register_hooks([FiniteGuard(model, optimizer, scaled)])
        self.checkpointer = SafeCheckpointer(
            self._evaluated,
            cfg.OUTPUT_DIR,
            starts_afresh=self._starts_afresh,
            heads_weights=cfg.MODEL.SPATIALFLOW.HEADS_WEIGHTS,
            trainer=weakref.proxy(self),
        )
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume the last checkpoint of OUTPUT_DIR with its data stream, or load MODEL.WEIGHTS."""
        super().resume_or_load(resume)
        if self._average is not None and not self._average.resumed:
            self._average.start_from_average()
        if self.start_iter:
            self._trainer.reset_data_loader(
                lambda: self.build_train_loader(self.cfg, self.start_iter)
            )

    def _take_apart(self, num_parts: int) -> None:
        """Let each batch go through the model in parts."""
        trainer = self._trainer
        if num_parts != 1:
            scaler = [trainer.grad_scaler.scale] if isinstance(trainer, AMPTrainer) else []
            trainer.model = InParts(trainer.model, num_parts, *scaler)
            trainer.zero_grad_before_forward = True

    def _evaluate(self) -> dict:
        self._last_eval_results = self.test(self.cfg, self._evaluated)
        return self._last_eval_results

    def _starts_afresh(self, name: str) -> bool:
        return self.cfg.MODEL.CLASS_LAYERS.REINIT and name.startswith(self._class_layers)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model, of which MODEL.CLASS_LAYERS.TRAIN_ONLY leaves little to train."""
        model = super().build_model(cfg)
        if cfg.MODEL.CLASS_LAYERS.TRAIN_ONLY:
            train_only_class_layers(model, class_layers_of(cfg))
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """What SOLVER.OPTIMIZER names, see :func:`spatialflow.engine.build_optimizer`."""
        return build_optimizer(cfg, model)

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Detectron2's, with the scaling rule of the optimizer."""
        return auto_scale_workers(cfg, num_workers)

    def run_step(self) -> None:
        """One iteration, with random numbers that depend on seed, iteration and process only."""
        sequence = np.random.SeedSequence([self.cfg.SEED, self.iter, comm.get_rank()])
        seed_all_rng(int(sequence.generate_state(1)[0]))
        super().run_step()

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, the seed, which is drawn when the config has none, and the batching."""
        return {**super().state_dict(), "seed": self.cfg.SEED, "batching": batching(self.cfg)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load ``state_dict``, including the seed.

        Raises:
            ValueError: its run had another total batch.
        """
        check_batching(state_dict.get("batching", {}), self.cfg)
        super().load_state_dict(state_dict)
        self.cfg = _with_seed(self.cfg, state_dict["seed"])

    def build_hooks(self) -> list:
        """Detectron2's hooks, the checkpoint of the best PQ behind the evaluation, and stopping.

        Raises:
            ValueError: SOLVER.CHECKPOINT_MAX_TO_KEEP is negative.
        """
        solver = self.cfg.SOLVER
        if solver.CHECKPOINT_MAX_TO_KEEP < 0:
            raise ValueError(
                f"SOLVER.CHECKPOINT_MAX_TO_KEEP is {solver.CHECKPOINT_MAX_TO_KEEP}; give how many "
                "checkpoints to keep, or 0 to keep all."
            )
        hooks = super().build_hooks()
        for i, hook in enumerate(hooks):
            if isinstance(hook, detectron2.engine.hooks.PeriodicCheckpointer):
                hooks[i] = PeriodicCheckpointer(
                    self.checkpointer,
                    solver.CHECKPOINT_PERIOD,
                    max_to_keep=solver.CHECKPOINT_MAX_TO_KEEP or None,
                )
            elif isinstance(hook, detectron2.engine.hooks.EvalHook):
                hooks[i] = detectron2.engine.hooks.EvalHook(
                    self.cfg.TEST.EVAL_PERIOD, self._evaluate
                )
        if comm.is_main_process() and self.cfg.DATASETS.TEST:
            names = self.cfg.DATASETS.TEST
            prefix = f"{names[0]}/" if len(names) > 1 else ""
            best = BestModelCheckpointer(
                self.cfg.TEST.EVAL_PERIOD,
                self._evaluated,
                self.cfg.OUTPUT_DIR,
                f"{prefix}panoptic_seg/PQ",
            )
            hooks.insert(-1, best)  # before the writer
        metrics = OneRunOfMetrics(Path(self.cfg.OUTPUT_DIR, "metrics.json"))
        return [*hooks, metrics, StopOnSignal(self.checkpointer)]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iter: int = 0) -> DataLoader:
        """Batches of training dicts from iteration ``start_iter`` on."""
        return build_train_loader(cfg, start_iter)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Inference dicts of a dataset."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, model: PanopticModel
    ) -> DatasetEvaluator:
        """What can be measured; TEST.SAVE_PREDICTIONS and SAVE_RAW_OUTPUTS also write."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(
            model,
            dataset_name,
            output_dir=folder if cfg.TEST.SAVE_PREDICTIONS else None,
            raw_dir=folder if cfg.TEST.SAVE_RAW_OUTPUTS else None,
        )

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[DatasetEvaluator] | None = None,
    ) -> dict:
        """Evaluate on DATASETS.TEST, log a table, write ``results.json`` and ``results.csv``.

        Both files are in OUTPUT_DIR; the CSV has a row for each number, see
        :func:`spatialflow.evaluation.write_csv`. Several datasets share one table.

        Returns:
            Results as Detectron2 has them, ``{task: {metric: value}}``; one such dict a dataset
            when there are several.
        """
        names = cfg.DATASETS.TEST
        model = with_views(cfg, model)
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name, model) for name in names]
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process() and names:
            alone = len(names) == 1
            by_name = {names[0]: results} if alone else results
            text = format_results(results) if alone else format_comparison(by_name)
            logging.getLogger(__name__).info(f"{', '.join(names)}\n\n{text}\n")
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
            path = os.path.join(cfg.OUTPUT_DIR, "results.json")
            write_json(path, without_nan(by_name), indent=2)
            write_csv(os.path.join(cfg.OUTPUT_DIR, "results.csv"), by_name)
        return results


def _inner_trainer(cfg: CfgNode) -> tuple[Callable[..., SimpleTrainer], bool]:
    """What makes the trainer that steps, and whether it scales losses."""
    amp = cfg.SOLVER.AMP
    if not amp.ENABLED:
        return SimpleTrainer, False
    precision = AUTOCAST_DTYPES.get(amp.PRECISION)
    if precision is None:
        raise ValueError(f"SOLVER.AMP.PRECISION is {amp.PRECISION!r}; give float16 or bfloat16.")
    scaled = precision == torch.float16
    scaler = torch.amp.GradScaler("cuda", enabled=scaled)
    return partial(AMPTrainer, grad_scaler=scaler, precision=precision), scaled


def _with_seed(cfg: CfgNode, seed: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    cfg.freeze()
    return cfg
