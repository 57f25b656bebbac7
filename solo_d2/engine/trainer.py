"""Detectron2's trainer, extended for SOLO."""

import json
import logging
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import BestCheckpointer, DefaultTrainer, EvalHook, TrainerBase
from detectron2.engine.hooks import CallbackHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import DatasetEvaluator, print_csv_format
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from solo_d2.checkpoint.checkpointer import (
    SOLOCheckpointer,
    require_no_earlier,
    set_aside_last_checkpoint,
)
from solo_d2.checkpoint.matching import CLASS_LAYER
from solo_d2.checkpoint.saved_classes import KEY as CLASSES_KEY
from solo_d2.config.models import model_class
from solo_d2.data import SOLODatasetMapper
from solo_d2.data.catalog import training_categories
from solo_d2.data.classes import Category, difference
from solo_d2.data.other_models import without_other_inputs
from solo_d2.engine.checks import FULL_MODEL, check_run_config
from solo_d2.engine.hooks import (
    EMA,
    EarlyStopping,
    EndOfTraining,
    ResumableBestCheckpointer,
    TrainedWeights,
    seed_step,
)
from solo_d2.engine.launch import distribute
from solo_d2.engine.metrics import best_metric, save_metrics
from solo_d2.engine.reservation import release, reserve
from solo_d2.engine.setup import save_config
from solo_d2.engine.step import StepTrainer, step_options, unwrap
from solo_d2.engine.training_data import build_train_loader, require_trainable
from solo_d2.evaluation import build_evaluator, evaluate_dataset, evaluation_loader
from solo_d2.evaluation.build import evaluator_type
from solo_d2.modeling.backbones import layer_lr_factor
from solo_d2.modeling.speed import (
    SpeedOptions,
    speed_up,
    speed_up_training,
    training_options,
)
from solo_d2.modeling.tiles import SOLOWithTiles
from solo_d2.modeling.tta import SOLOWithTTA
from solo_d2.utils.errors import ConfigError

logger = logging.getLogger("solo_d2")

# Parameters of Swin and ViT without weight decay in AdamW, as in the code of their papers.
POSITION_TABLES = ("relative_position_bias_table", "pos_embed")

# Key of the weights that training continues from, in a checkpoint of EMA weights.
TRAINED_MODEL = "trained_model"


class Trainer(DefaultTrainer):
    """Detectron2's default trainer for SOLO models.

    Attributes:
        ema: keeps the EMA weights; None without SOLVER.EMA.
    """

    def __init__(self, cfg: CfgNode):
        """Build model, data loader, optimizer and hooks; ConfigError for an invalid value."""
        check_run_config(cfg)
        bases = type(self).__mro__
        overridden = {name for base in bases[: bases.index(Trainer)] for name in vars(base)}
        if not overridden & {"test", "build_evaluator"}:
            for name in cfg.DATASETS.TEST:
                evaluator_type(name)  # the evaluation would raise the same error
        # Not DefaultTrainer.__init__, which supports neither `StepTrainer` nor processes on CPUs.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        require_trainable(cfg.DATASETS.TRAIN, model, data_loader)
        self._trainer = StepTrainer(distribute(model), data_loader, optimizer, **step_options(cfg))
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        # The images trained on before `start_iter`, and the batch size of the checkpoint.
        self._images_before, self._batch_size_before = 0, float(cfg.SOLVER.IMS_PER_BATCH)
        self.ema = None
        others: dict[str, Any] = {}
        if cfg.SOLVER.EMA.ENABLED:
            self.ema = EMA(unwrap(self.model), cfg.SOLVER.EMA.DECAY)
            self._trained = TrainedWeights(unwrap(self.model), cfg.MODEL.WEIGHTS_ALLOW)
            others[TRAINED_MODEL] = self._trained
        self.checkpointer = SOLOCheckpointer(
            self.evaluated_model,
            cfg.OUTPUT_DIR,
            allow=cfg.MODEL.WEIGHTS_ALLOW,
            classes=self.categories(),
            trainer=weakref.proxy(self),
            **others,
        )
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> Any:
        """Build the model; keys of SOLVER set how it computes in training."""
        model_class(cfg)
        model = super().build_model(cfg)
        return speed_up_training(model, **training_options(cfg, model))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader[Any]:
        """Build the loader of `solo_d2.data.loader`, with SOLO's mapper."""
        return build_train_loader(cfg, SOLODatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build Detectron2's loader with SOLO's mapper, which raises for unreadable images."""
        mapper = SOLODatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(without_other_inputs(cfg), dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """Build the evaluator of the data set's type."""
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build SGD or AdamW, by SOLVER.OPTIMIZER, on Detectron2's parameter groups.

        AdamW, and SGD on CUDA, are fused, so that `StepTrainer` need not wait for metrics.
        """
        if cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == FULL_MODEL:  # unknown to Detectron2
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        if cfg.SOLVER.OPTIMIZER == "SGD":
            sgd = super().build_optimizer(cfg, model)
            return fused_sgd(sgd) if next(model.parameters()).is_cuda else sgd
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            lr_factor_func=layer_lr_factor(cfg, model),
            overrides={name: {"weight_decay": 0.0} for name in POSITION_TABLES},
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
            params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=True
        )

    def build_hooks(self) -> list[Any]:
        """Build Detectron2's hooks, and those for seeds, EMA and the best checkpoint."""
        solver, period = self.cfg.SOLVER, self.cfg.TEST.EVAL_PERIOD
        hooks, best, writers = [], None, []
        if (seed := self.cfg.SEED) >= 0:
            step = CallbackHook(before_step=lambda x: seed_step(seed, x.iter, comm.get_rank()))
            hooks.append(step)
        for hook in super().build_hooks():
            if isinstance(hook, PeriodicWriter):
                writers = [hook]
            elif not isinstance(hook, PeriodicCheckpointer | EvalHook):
                hooks.append(hook)
        if self.ema is not None:
            hooks.append(self.ema)  # before what saves or evaluates
        if comm.is_main_process():
            hooks.append(PeriodicCheckpointer(self.checkpointer, solver.CHECKPOINT_PERIOD))
        hooks.append(EvalHook(period, self._evaluate))
        if period > 0 and comm.is_main_process():
            metric = self._best_metric()
            best = ResumableBestCheckpointer(period, self.checkpointer, metric)
            hooks.append(best)
        if solver.EARLY_STOPPING_PATIENCE > 0:
            patience = solver.EARLY_STOPPING_PATIENCE
            hooks.append(EarlyStopping(best, period=period, patience=patience))
        if self.cfg.TEST.AUG.ENABLED:
            hooks.append(EvalHook(0, self._evaluate_with_tta))
        return hooks + writers

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None
    ) -> "OrderedDict[str, Any]":
        """Evaluate on DATASETS.TEST and write the metrics to OUTPUT_DIR/evaluation.json.

        The file maps names to percent, or null if undefined. Unreadable images count as images
        without predictions.

        Args:
            cfg: the config.
            model: the model with its weights.
            evaluators: one evaluator, or one for each data set; None: those of `build_evaluator`.
        """
        results = cls._evaluate_datasets(cfg, model, evaluators)
        if results:
            save_metrics(cfg, results)
        return results

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> "OrderedDict[str, Any]":
        """Evaluate with TTA and add the metrics to OUTPUT_DIR/evaluation.json.

        Returns:
            The results of `test`, with _TTA appended to the outermost names.
        """
        folder = Path(cfg.OUTPUT_DIR)
        evaluators = [
            cls.build_evaluator(cfg, name, str(folder / "inference_TTA" / name))
            for name in cfg.DATASETS.TEST
        ]
        augmented = SOLOWithTTA(cfg, unwrap(model))
        results = cls._evaluate_datasets(_at_own_size(cfg), augmented, evaluators)
        results = OrderedDict((f"{name}_TTA", value) for name, value in results.items())
        file = folder / "evaluation.json"
        save_metrics(cfg, results, json.loads(file.read_text()) if file.is_file() else {})
        return results

    @classmethod
    def _evaluate_datasets(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Any
    ) -> "OrderedDict[str, Any]":
        """Run Detectron2's `test` with `evaluate_dataset`."""
        results: OrderedDict[str, Any] = OrderedDict()
        given = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
        for index, name in enumerate(cfg.DATASETS.TEST):
            evaluator = given[index] if given else cls.build_evaluator(cfg, name)
            results[name] = evaluate_dataset(model, evaluation_loader(cfg, name), evaluator)
            if comm.is_main_process():
                logger.info(f"Evaluation results for {name} in csv format:")
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated and saved: the EMA model if there is one."""
        return unwrap(self.model) if self.ema is None else self.ema.average

    def categories(self) -> list[Category]:
        """Return the classes to save in checkpoints; see `solo_d2.data.classes`."""
        return training_categories(self.cfg)

    def _evaluate(self) -> "OrderedDict[str, Any]":
        self._last_eval_results = self.test(self.cfg, self.evaluated_model)
        return self._last_eval_results

    def _evaluate_with_tta(self) -> "OrderedDict[str, Any]":
        return self.test_with_tta(self.cfg, self.evaluated_model)

    def save_config(self) -> None:
        """Write OUTPUT_DIR/config.yaml."""
        save_config(self.cfg)

    def train(self) -> Any:
        """Write OUTPUT_DIR/config.yaml and train to the end, or until `EarlyStopping` stops.

        Raises:
            ConfigError: another process trains in OUTPUT_DIR.
        """
        folder = self.cfg.OUTPUT_DIR
        reserve(folder)
        try:
            # Not before: a training that is refused must not change the files.
            self.save_config()
            if self.start_iter == 0 and comm.is_main_process():
                set_aside_last_checkpoint(folder)
            if self.start_iter >= self.max_iter and not Path(folder, "model_final.pth").is_file():
                # The training was killed between its last step and this file.
                self.checkpointer.save("model_final", iteration=self.max_iter - 1)
            # Not DefaultTrainer.train, which verifies TEST.EXPECTED_RESULTS.
            return TrainerBase.train(self, self.start_iter, self.max_iter)
        except EndOfTraining:  # right after an evaluation
            if self.cfg.TEST.AUG.ENABLED:
                self._evaluate_with_tta()
            return self._last_eval_results
        finally:
            release(folder)

    def after_train(self) -> None:
        """Run the final hooks, without evaluation after a failure in the last iteration."""
        if self.iter < self.max_iter:  # Detectron2's hooks take that iteration for success
            of_success = (EvalHook, BestCheckpointer)
            hooks: list[Any] = self._hooks  # type: ignore[has-type]
            self._hooks = [hook for hook in hooks if not isinstance(hook, of_success)]
        super().after_train()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed training needs besides the weights."""
        # After the last iteration, `iter` is one larger.
        done = max(self.start_iter, min(self.iter + 1, self.max_iter))
        new_images = (done - self.start_iter) * self.cfg.SOLVER.IMS_PER_BATCH
        return {
            **super().state_dict(),
            "iteration": done - 1,
            "images_seen": self._images_before + new_images,
            "batch_size": self.cfg.SOLVER.IMS_PER_BATCH,
            "best_of": self._best_of(),
        }

    def _best_of(self) -> list[str]:
        """Return the metric and data sets that determine the best checkpoint."""
        return [self._best_metric(), *self.cfg.DATASETS.TEST]

    def _best_metric(self) -> str:
        """Return the key of the best checkpoint's metric in the results of `test`."""
        names, metric = self.cfg.DATASETS.TEST, best_metric(self.cfg)
        return f"{names[0]}/{metric}" if len(names) > 1 else metric

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state, with the schedule and options of the config.

        State of other parameters or of another evaluation is dropped and logged.
        """
        restarted = self.checkpointer.restarted
        hooks = dict(state_dict.get("hooks", {}))
        hooks.pop("LRScheduler", None)
        if restarted and hooks.pop("EMA", None) and self.ema is not None:
            logger.warning("EMA restarts, since some of the weights were not loaded")
        same = state_dict.get("best_of", self._best_of()) == self._best_of()
        if (restarted or not same) and hooks.pop("ResumableBestCheckpointer", None):
            logger.warning(
                "The best metric so far is dropped: it belongs to "
                + ("weights that were not loaded" if same else "another evaluation")
            )
        TrainerBase.load_state_dict(self, {**state_dict, "hooks": hooks})
        self._trainer.load_state_dict(state_dict["_trainer"], restarted=restarted)
        done, batch = self.iter + 1, self.cfg.SOLVER.IMS_PER_BATCH
        self._images_before = state_dict.get("images_seen", done * batch)
        # Checkpoints of earlier versions do not have the batch size.
        mean_batch_size = self._images_before / max(1, done)
        self._batch_size_before = state_dict.get("batch_size", mean_batch_size)
        # Detectron2's schedules depend on the iteration only.
        self.scheduler.last_epoch = min(done, self.max_iter)
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = lr

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint or MODEL.WEIGHTS; skip the data that was already seen.

        Raises:
            ConfigError: the weights can't be used, or SOLVER.EMA has changed.
        """
        rest = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        folder, has_checkpoint = self.cfg.OUTPUT_DIR, self.checkpointer.has_checkpoint()
        if resume and not has_checkpoint:
            require_no_earlier(folder)
            text = "OUTPUT_DIR %s has no checkpoint to resume: training starts from the beginning"
            logger.warning(text, folder)
        elif has_checkpoint and not resume:
            text = "OUTPUT_DIR %s has checkpoints of an earlier training, which this one overwrites"
            logger.warning(text + ": to continue it, use --resume", folder)
        self._compare_classes(rest)
        if resume and has_checkpoint:
            self.start_iter = self.iter + 1
            self._compare_with_checkpoint(rest)
        if self.ema is not None and not self._trained.loaded:
            # The weights were loaded into the EMA model; training starts from them.
            unwrap(self.model).load_state_dict(self.ema.average.state_dict())
        if self.ema is not None and self.ema.num_steps == 0:
            self.ema.restart()
        batch_size = self.cfg.SOLVER.IMS_PER_BATCH
        if batch_size != self._batch_size_before:
            logger.warning(
                f"SOLVER.IMS_PER_BATCH is {batch_size}, but {self._batch_size_before:g} in the "
                f"checkpoint: iteration {self.start_iter} begins with image {self._images_before} "
                "of the random order"
            )
        self._trainer.data_loader.batch_sampler.start_batch = self._images_before // batch_size

    def _compare_classes(self, rest: dict[str, Any]) -> None:
        """Warn if weights of other classes were loaded; `rest` is the file's other content."""
        saved = rest.get(CLASSES_KEY)
        if not saved or CLASS_LAYER & set(self.checkpointer.restarted):
            return
        differing = difference(saved, self.categories(), ("the checkpoint", "DATASETS.TRAIN"))
        if differing:
            logger.warning(
                f"The classes differ: {differing}. Each class continues from the weights of the "
                "class with the same index"
            )

    def _compare_with_checkpoint(self, rest: dict[str, Any]) -> None:
        """Log differences to the training that is resumed; `rest` is its other saved state."""
        weights, folder = self.cfg.MODEL.WEIGHTS, self.cfg.OUTPUT_DIR
        logger.info(
            f"Training continues after {self.start_iter} iterations"
            + (f"; MODEL.WEIGHTS {weights} is ignored" if weights else "")
        )
        if self.start_iter > self.max_iter:
            logger.warning(
                f"SOLVER.MAX_ITER is {self.max_iter}, but the checkpoint in {folder} already has "
                f"{self.start_iter} iterations: nothing is left to train"
            )
        if self.ema is None and TRAINED_MODEL in rest:
            raise ConfigError(
                f"SOLVER.EMA.ENABLED is False, but the checkpoint in {folder} was trained with it: "
                "set it to True to continue"
            )


def fused_sgd(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return a fused copy of an optimizer of Detectron2's `build_optimizer`."""
    groups = [{**group, "foreach": False, "fused": True} for group in optimizer.param_groups]
    kind: Any = type(optimizer)
    return kind(groups, fused=True)


def load_weights(cfg: CfgNode, model: nn.Module) -> None:
    """Load MODEL.WEIGHTS for evaluation; warn if it is empty."""
    if not cfg.MODEL.WEIGHTS:
        logger.warning(
            "MODEL.WEIGHTS is empty, so the evaluated model has random weights: set it to a "
            "trained checkpoint"
        )
    SOLOCheckpointer(model, save_dir=cfg.OUTPUT_DIR, whole=True).load(cfg.MODEL.WEIGHTS)


def _at_own_size(cfg: CfgNode) -> CfgNode:
    """Return a copy with which images are not resized: views and tiles are made from them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = 0
    return cfg


def evaluate(cfg: CfgNode) -> "OrderedDict[str, Any]":
    """Load MODEL.WEIGHTS and evaluate on DATASETS.TEST; with TEST.AUG.ENABLED, with TTA too."""
    for name in cfg.DATASETS.TEST:
        evaluator_type(name)
    model = DefaultTrainer.build_model(cfg)
    load_weights(cfg, model)
    model = speed_up(model, SpeedOptions.from_config(cfg))
    if cfg.TEST.TILES.SIZE == 0:
        results = Trainer.test(cfg, model)
    else:
        results = Trainer.test(_at_own_size(cfg), SOLOWithTiles(cfg, model))
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_tta(cfg, model))
    return results
