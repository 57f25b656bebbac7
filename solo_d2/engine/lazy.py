"""Training from Detectron2's lazy configs, with all that `Trainer` does.

A lazy config is a Python file that says how model, optimizer, schedule and data are constructed;
configs/lazy/ has one. What it says of the training itself, in `train`, is listed in `KEYS`.
"""

from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from solo_d2.config import add_solo_config
from solo_d2.engine.checks import FULL_MODEL
from solo_d2.engine.trainer import Trainer, save_figures
from solo_d2.errors import ConfigError

# Each key of `train`, and of the loader, with the key of the YAML configs that means the same.
KEYS = {
    "train.output_dir": "OUTPUT_DIR",
    "train.init_checkpoint": "MODEL.WEIGHTS",
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
}


def trainer_config(lazy: DictConfig) -> CfgNode:
    """What of a lazy config the trainer and its hooks read, under the names that they know.

    Raises:
        ConfigError: a key has a value that cannot work, or `train` has an unknown one.
    """
    unknown = {f"train.{name}" for name in _leaves(lazy.train)} - KEYS.keys()
    if unknown:
        raise ConfigError(
            f"The lazy config has {', '.join(sorted(unknown))}, which nothing reads; known are "
            f"{', '.join(KEYS)}"
        )
    cfg = get_cfg()
    add_solo_config(cfg)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = FULL_MODEL
    target = lazy.model["_target_"]  # a class, or its name
    cfg.MODEL.META_ARCHITECTURE = getattr(target, "__name__", str(target).rpartition(".")[2])
    for name, key in KEYS.items():
        value = OmegaConf.select(lazy, name)
        if value is not None:
            try:
                cfg.merge_from_list([key, value])
            except ValueError as error:
                raise ConfigError(f"{name} is {value!r}: {error}") from error
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed()
    cfg.freeze()
    return cfg


def _leaves(node: DictConfig, prefix: str = "") -> list[str]:
    names = []
    for name in map(str, node):
        if isinstance(node[name], DictConfig):
            names += _leaves(node[name], f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


class LazyTrainer(Trainer):
    """The trainer, of what a lazy config constructs."""

    def __init__(self, lazy: DictConfig):
        """Construct all that the config names.

        Args:
            lazy: with `model`, `optimizer`, `lr_multiplier`, `dataloader` and `train`.

        Raises:
            ConfigError: see `trainer_config`.
        """
        self.lazy = lazy
        super().__init__(trainer_config(lazy))

    def build_model(self, cfg: CfgNode) -> nn.Module:  # type: ignore[override]
        """The model of the config, on the device."""
        return instantiate(self.lazy.model).to(cfg.MODEL.DEVICE)

    def build_train_loader(self, cfg: CfgNode) -> Any:  # type: ignore[override]
        """The loader of the config."""
        return instantiate(self.lazy.dataloader.train)

    def build_optimizer(  # type: ignore[override]
        self, cfg: CfgNode, model: nn.Module
    ) -> torch.optim.Optimizer:
        """The optimizer of the config."""
        self.lazy.optimizer.params.model = model
        try:
            return instantiate(self.lazy.optimizer)
        finally:
            del self.lazy.optimizer.params.model

    def build_lr_scheduler(self, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
        """The schedule of the config."""
        multiplier = instantiate(self.lazy.lr_multiplier)
        return LRMultiplier(optimizer, multiplier, cfg.SOLVER.MAX_ITER)

    def test(  # type: ignore[override]
        self, cfg: CfgNode, model: nn.Module
    ) -> "OrderedDict[str, Any]":
        """Evaluate on the test loader; OUTPUT_DIR/evaluation.json keeps the last figures."""
        return evaluate_lazy(self.lazy, cfg, model)


def evaluate_lazy(lazy: DictConfig, cfg: CfgNode, model: nn.Module) -> "OrderedDict[str, Any]":
    """Evaluate a model on the test loader of a lazy config.

    Args:
        lazy: with `dataloader.test` and `dataloader.evaluator`.
        cfg: what `trainer_config` makes of it.
        model: in training mode or not.
    """
    loader, evaluator = (instantiate(lazy.dataloader[key]) for key in ("test", "evaluator"))
    results = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    save_figures(cfg, results)
    return results
