"""Detectron2's trainer with what SOLO needs: mapper, evaluators, schedule scaling, exact resume."""

import argparse
import logging
import math
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    BestCheckpointer,
    DefaultTrainer,
    default_argument_parser,
    default_setup,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from solo_d2.benchmarks.common import save_json
from solo_d2.config import load_config, override
from solo_d2.data import (
    SOLODatasetMapper,
    check_datasets,
    register_datasets_of_config,
    resolve_num_classes,
)
from solo_d2.data.loader import build_train_loader
from solo_d2.data.stuff_classes import is_panoptic
from solo_d2.errors import ConfigError
from solo_d2.evaluation import build_evaluator, provide_cityscapes_scripts
from solo_d2.modeling.backbones import layer_lr_factor
from solo_d2.modeling.checkpointer import SOLOCheckpointer

logger = logging.getLogger("solo_d2")

# By MODEL.SOLO.MASK_TARGET, the figure that decides which checkpoint is the best; of a panoptic
# model it is another.
BEST_METRIC = {"mask": "segm/AP", "contour": "contours/F"}
BEST_PANOPTIC_METRIC = "panoptic_seg/PQ"

# Parameters of Swin and ViT that do not decay with AdamW, as in their papers' code.
POSITION_TABLES = ("relative_position_bias_table", "pos_embed")


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments, and those that name a data set in COCO format."""
    parser = default_argument_parser()
    group = parser.add_argument_group("your own data in COCO format (no registration in code)")
    for split, use in (("train", "train on"), ("val", "evaluate on")):
        group.add_argument(f"--{split}-json", metavar="FILE", help=f"instances to {use}")
        group.add_argument(f"--{split}-images", metavar="DIR", help="folder of the images")
        group.add_argument(
            f"--{split}-panoptic-json", metavar="FILE", help=f"panoptic annotations to {use}"
        )
        group.add_argument(f"--{split}-panoptic-dir", metavar="DIR", help="folder of their PNGs")
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    """Make the final config of a run: file, data set arguments, overrides, scaling, classes.

    Args:
        args: what `argument_parser()` gives.

    Returns:
        The frozen config, also written to OUTPUT_DIR/config.yaml.

    Raises:
        ConfigError: a key has a value that cannot work.
        DatasetError: a data set cannot be found or read.
    """
    cfg = load_config(args.config_file)
    _add_dataset_arguments(cfg, args)
    override(cfg, args.opts)
    if not torch.cuda.is_available() and cfg.MODEL.DEVICE == "cuda":
        logger.warning("no GPU is available: MODEL.DEVICE is changed from cuda to cpu")
        cfg.MODEL.DEVICE = "cpu"
    scale_schedule(cfg)
    register_datasets_of_config(cfg)
    used = tuple(cfg.DATASETS.TEST) if args.eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    check_datasets(used)
    if any(
        str(MetadataCatalog.get(name).get("evaluator_type")).startswith("cityscapes")
        for name in used
    ):
        provide_cityscapes_scripts()
    resolve_num_classes(cfg, used)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def _add_dataset_arguments(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Turn --train-json and its like into DATASETS keys."""
    for split, key in (("train", "TRAIN"), ("val", "TEST")):
        kinds = ("json", "panoptic_json", "panoptic_dir", "images")
        given = {kind: getattr(args, f"{split}_{kind}", None) for kind in kinds}
        present = [kind for kind, value in given.items() if value]
        name = f"custom_{split}"
        entry = [name, *(given[kind] for kind in present)]
        if present == ["json", "images"]:
            cfg.DATASETS.COCO_FORMAT = [*cfg.DATASETS.COCO_FORMAT, entry]
        elif present == ["panoptic_json", "panoptic_dir", "images"]:
            cfg.DATASETS.COCO_PANOPTIC_FORMAT = [*cfg.DATASETS.COCO_PANOPTIC_FORMAT, entry]
        elif present:
            raise ConfigError(
                f"--{split}-json and --{split}-images belong together: give both; or "
                f"--{split}-panoptic-json, --{split}-panoptic-dir and --{split}-images: give all "
                "three"
            )
        if present:
            cfg.DATASETS[key] = (name,)


def scale_schedule(cfg: CfgNode) -> None:
    """Scale learning rate and schedule from SOLVER.REFERENCE_IMS_PER_BATCH to IMS_PER_BATCH.

    The linear rule of arXiv:1706.02677: twice the batch, twice the learning rate, half the
    iterations. What was changed is logged. Afterwards the reference is the batch size, so that a
    saved config is not scaled twice.

    Args:
        cfg: the config, changed in place. A reference of 0 leaves it alone.
    """
    solver = cfg.SOLVER
    reference, batch = solver.REFERENCE_IMS_PER_BATCH, solver.IMS_PER_BATCH
    if reference == 0 or reference == batch:
        return
    ratio = batch / reference
    before = {key: solver[key] for key in ("BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")}
    solver.BASE_LR *= ratio
    solver.MAX_ITER = round(solver.MAX_ITER / ratio)
    solver.STEPS = tuple(round(step / ratio) for step in solver.STEPS)
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / ratio)
    solver.CHECKPOINT_PERIOD = max(1, round(solver.CHECKPOINT_PERIOD / ratio))
    if cfg.TEST.EVAL_PERIOD > 0:
        cfg.TEST.EVAL_PERIOD = max(1, round(cfg.TEST.EVAL_PERIOD / ratio))
    solver.REFERENCE_IMS_PER_BATCH = batch
    changes = ", ".join(f"{key} {old} -> {solver[key]}" for key, old in before.items())
    logger.warning(
        f"SOLVER.IMS_PER_BATCH is {batch}, the schedule was made for {reference}: {changes}. "
        "SOLVER.REFERENCE_IMS_PER_BATCH 0 switches this off."
    )


class Trainer(DefaultTrainer):
    """Detectron2's default trainer for SOLO models."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader[Any]:
        """The loader of `solo_d2.data.loader`, with SOLO's mapper."""
        return build_train_loader(cfg, SOLODatasetMapper(cfg, is_train=True))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """SGD or AdamW, by SOLVER.OPTIMIZER, on Detectron2's parameter groups."""
        name = cfg.SOLVER.OPTIMIZER
        if name == "SGD":
            return super().build_optimizer(cfg, model)
        if name != "AdamW":
            raise ConfigError(f"SOLVER.OPTIMIZER is {name!r}, but must be 'SGD' or 'AdamW'")
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            lr_factor_func=layer_lr_factor(cfg),
            overrides={name: {"weight_decay": 0.0} for name in POSITION_TABLES},
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
            params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=True
        )

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator of the data set's type."""
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None
    ) -> "OrderedDict[str, Any]":
        """Evaluate on DATASETS.TEST; OUTPUT_DIR/evaluation.json keeps the last figures.

        They are flat, name -> percent, with null for what is not defined.
        """
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            figures = {key: float(value) for key, value in flatten_results_dict(results).items()}
            save_json(
                Path(cfg.OUTPUT_DIR) / "evaluation.json",
                {key: value if math.isfinite(value) else None for key, value in figures.items()},
            )
        return results

    def build_hooks(self) -> list[Any]:
        """Detectron2's hooks, and one that keeps the best checkpoint."""
        # The hooks get the checkpointer, so this is the last place to choose another.
        self.checkpointer = SOLOCheckpointer(
            self._trainer.model,
            self.cfg.OUTPUT_DIR,
            allow=self.cfg.MODEL.WEIGHTS_ALLOW,
            trainer=weakref.proxy(self),
        )
        hooks = super().build_hooks()
        if self.cfg.TEST.EVAL_PERIOD > 0 and comm.is_main_process():
            best = ResumableBestCheckpointer(
                self.cfg.TEST.EVAL_PERIOD,
                self.checkpointer,
                best_metric(self.cfg),
            )
            hooks.insert(-1, best)  # after the evaluation, before the writers
        return hooks

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint or MODEL.WEIGHTS; skip the data that was already seen."""
        super().resume_or_load(resume=resume)
        self._trainer.data_loader.batch_sampler.start_batch = self.start_iter


def best_metric(cfg: CfgNode) -> str:
    """Name of the figure by which checkpoints are compared."""
    return BEST_PANOPTIC_METRIC if is_panoptic(cfg) else BEST_METRIC[cfg.MODEL.SOLO.MASK_TARGET]


class ResumableBestCheckpointer(BestCheckpointer):
    """Remembers the best figure over a resume, which Detectron2's own hook forgets."""

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far and its iteration."""
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


def evaluate(cfg: CfgNode) -> "OrderedDict[str, Any]":
    """Load MODEL.WEIGHTS and evaluate on DATASETS.TEST."""
    model = Trainer.build_model(cfg)
    SOLOCheckpointer(model, save_dir=cfg.OUTPUT_DIR, whole=True).load(cfg.MODEL.WEIGHTS)
    return Trainer.test(cfg, model)
