"""Training from Detectron2's lazy configs (configs/lazy/), with all features of `Trainer`."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.evaluation import print_csv_format
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from solo_d2.checkpoint.saved_classes import adopt_saved_classes
from solo_d2.config import default_config, override
from solo_d2.config.rules import leaves
from solo_d2.data.catalog import require_model_classes
from solo_d2.data.classes import Category
from solo_d2.data.own_loaders import use_own_loaders
from solo_d2.engine.bad_step import RunRecord
from solo_d2.engine.checks import FULL_MODEL, check_run_config
from solo_d2.engine.metrics import save_metrics
from solo_d2.engine.trainer import Trainer, load_weights
from solo_d2.engine.training_data import explaining_no_data
from solo_d2.evaluation.check import check_evaluation
from solo_d2.evaluation.run import NotingMapper, evaluate_dataset
from solo_d2.modeling.building import refusing
from solo_d2.modeling.speed import speed_up_training, training_options
from solo_d2.utils.errors import ConfigError, DatasetError, shown

logger = logging.getLogger("solo_d2")

# Required keys of a lazy config.
PARTS = ("model", "optimizer", "lr_multiplier", "dataloader", "train")
# Keys of `train`, the model and the loader, with the equivalent keys of YAML configs.
KEYS = {
    "train.output_dir": "OUTPUT_DIR",
    "train.init_checkpoint": "MODEL.WEIGHTS",
    "train.weights_allow": "MODEL.WEIGHTS_ALLOW",
    "train.device": "MODEL.DEVICE",
    "train.seed": "SEED",
    "train.max_iter": "SOLVER.MAX_ITER",
    "train.checkpointer.period": "SOLVER.CHECKPOINT_PERIOD",
    "train.eval_period": "TEST.EVAL_PERIOD",
    "train.amp.enabled": "SOLVER.AMP.ENABLED",
    "train.amp.dtype": "SOLVER.AMP.DTYPE",
    "train.accumulate_steps": "SOLVER.ACCUMULATE_STEPS",
    "train.ema.enabled": "SOLVER.EMA.ENABLED",
    "train.ema.decay": "SOLVER.EMA.DECAY",
    "train.clip_full_model.enabled": "SOLVER.CLIP_GRADIENTS.ENABLED",
    "train.clip_full_model.max_norm": "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "train.clip_full_model.norm_type": "SOLVER.CLIP_GRADIENTS.NORM_TYPE",
    "train.early_stopping_patience": "SOLVER.EARLY_STOPPING_PATIENCE",
    "model.mask_target": "MODEL.SOLO.MASK_TARGET",
    "dataloader.train.total_batch_size": "SOLVER.IMS_PER_BATCH",
    "dataloader.train.max_unreadable": "DATALOADER.MAX_UNREADABLE_IMAGES",
}


def trainer_config(lazy: DictConfig) -> CfgNode:
    """Translate the keys of a lazy config that the trainer and its hooks read.

    Raises:
        ConfigError: a key has an invalid value, or `train` has an unknown key.
    """
    missing = [name for name in PARTS if not isinstance(lazy.get(name), DictConfig)]
    if missing:
        raise ConfigError(f"The lazy config has no {', '.join(missing)}; it must have {PARTS}")
    train: Any = OmegaConf.to_container(lazy.train, resolve=False)
    unknown = sorted({f"train.{name}" for name, _ in leaves(train)} - KEYS.keys())
    if unknown:
        raise ConfigError(
            f"The lazy config has the unknown keys {', '.join(unknown)}; known keys are "
            f"{', '.join(KEYS)}"
        )
    cfg = default_config()
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = FULL_MODEL
    cfg.DATASETS.TRAIN = tuple(_data_sets(lazy, "train"))
    target = lazy.model.get("_target_")
    kind = locate(target) if isinstance(target, str) else target
    # The model's class, or its registered base class.
    names = [base.__name__ for base in getattr(kind, "__mro__", ())]
    known = (name for name in names if name in META_ARCH_REGISTRY)
    cfg.MODEL.META_ARCHITECTURE = next(known, cfg.MODEL.META_ARCHITECTURE)
    for name, key in KEYS.items():
        value = OmegaConf.select(lazy, name)
        if isinstance(value, ListConfig):
            value = OmegaConf.to_container(value)
        if value is not None:
            try:
                override(cfg, [key, value])
            except ConfigError as error:
                raise ConfigError(f"{name} is {shown(value)}: {error}") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed()
    check_run_config(cfg, training=False)
    cfg.freeze()
    return cfg


def _data_sets(lazy: DictConfig, part: str) -> list[str]:
    """Return the names of a loader's data sets; empty for data that is not registered."""
    names = OmegaConf.select(lazy, f"dataloader.{part}.dataset.names") or []
    return [names] if isinstance(names, str) else list(names)


class LazyTrainer(Trainer):
    """Trainer of a lazy config."""

    def __init__(self, lazy: DictConfig):
        """Build model, data loader, optimizer and hooks; ConfigError if that fails."""
        self.lazy = lazy
        super().__init__(trainer_config(lazy))
        # The model is not built from that config.
        self._trainer.record = RunRecord(self.cfg.OUTPUT_DIR, config="", seed=self.cfg.SEED)

    def build_model(self, cfg: CfgNode) -> nn.Module:  # type: ignore[override]
        """Build the model of the config on its device, with the default keys of SOLVER."""
        model = _build_model(self.lazy, cfg)
        return speed_up_training(model, **training_options(cfg, model))

    def build_train_loader(self, cfg: CfgNode) -> Any:  # type: ignore[override]
        """Build the loader of the config."""
        use_own_loaders(cfg.DATASETS.TRAIN)
        with (
            refusing("The loader of the lazy config's dataloader.train"),
            explaining_no_data(cfg.DATASETS.TRAIN),
        ):
            return instantiate(self.lazy.dataloader.train)

    def build_optimizer(  # type: ignore[override]
        self, cfg: CfgNode, model: nn.Module
    ) -> torch.optim.Optimizer:
        """Build the optimizer of the config."""
        self.lazy.optimizer.params.model = model
        try:
            with refusing("The lazy config's optimizer"):
                return instantiate(self.lazy.optimizer)
        finally:
            del self.lazy.optimizer.params.model

    def build_lr_scheduler(self, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        """Build the schedule of the config."""
        with refusing("The lazy config's lr_multiplier"):
            multiplier = instantiate(self.lazy.lr_multiplier)
        return LRMultiplier(optimizer, multiplier, cfg.SOLVER.MAX_ITER)

    def categories(self) -> list[Category]:
        """Return the classes of the config's data set, if it is registered."""
        reason = "dataloader.train.dataset has no `names`"
        try:
            found = super().categories()
        except DatasetError as error:
            found, reason = [], str(error)
        if not found:
            logger.warning("Checkpoints will have no class names: %s", reason)
        return found

    def save_config(self) -> None:
        """Write the lazy config to OUTPUT_DIR/config.yaml."""
        save_lazy_config(self.lazy, self.cfg)

    def test(  # type: ignore[override]
        self, cfg: CfgNode, model: nn.Module
    ) -> "OrderedDict[str, Any]":
        """Evaluate on the test loader and write the metrics to OUTPUT_DIR/evaluation.json."""
        return _evaluate(self.lazy, cfg, model)


def save_lazy_config(lazy: DictConfig, cfg: CfgNode) -> None:
    """Write a lazy config to OUTPUT_DIR/config.yaml, in the main process."""
    if comm.is_main_process():
        LazyConfig.save(lazy, str(Path(cfg.OUTPUT_DIR) / "config.yaml"))


def _build_model(lazy: DictConfig, cfg: CfgNode) -> nn.Module:
    with refusing("The lazy config's `model`"):
        model: nn.Module = instantiate(lazy.model)
    return model.to(cfg.MODEL.DEVICE)


def check_lazy_test_data(lazy: DictConfig) -> None:
    """Check the data of `dataloader.test` before training; see `check_evaluation`.

    Raises:
        ConfigError: there is no test loader or evaluator, which the final evaluation needs.
        DatasetError: the evaluation would fail on the data.
    """
    for part in ("test", "evaluator"):
        if lazy.dataloader.get(part) is None:
            raise ConfigError(
                f"The lazy config has no dataloader.{part}, which the final evaluation needs"
            )
    # The lazy evaluator has its own reference to the data set.
    check_evaluation(
        _data_sets(lazy, "test"), lambda name, folder: instantiate(lazy.dataloader.evaluator)
    )


def evaluate_weights(lazy: DictConfig, cfg: CfgNode) -> "OrderedDict[str, Any]":
    """Evaluate train.init_checkpoint on the test loader of a lazy config.

    Args:
        lazy: config with `model`, `dataloader.test` and `dataloader.evaluator`.
        cfg: result of `trainer_config`.

    Raises:
        ConfigError: the weights can't be used, or their classes differ from those of the data set.
    """
    model = _build_model(lazy, cfg)
    with_classes = cfg.clone()
    with_classes.defrost()
    adopt_saved_classes(with_classes)
    require_model_classes(with_classes, _data_sets(lazy, "test"))
    load_weights(cfg, model)
    return _evaluate(lazy, cfg, model)


def _evaluate(lazy: DictConfig, cfg: CfgNode, model: nn.Module) -> "OrderedDict[str, Any]":
    """Evaluate a model on the test loader of a lazy config."""
    mapper = NotingMapper(instantiate(lazy.dataloader.test.mapper))
    loader = instantiate({**lazy.dataloader.test, "mapper": mapper})
    results = OrderedDict(evaluate_dataset(model, loader, instantiate(lazy.dataloader.evaluator)))
    if comm.is_main_process():
        print_csv_format(results)
    save_metrics(cfg, results)
    return results
