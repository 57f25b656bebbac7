"""Checks of the settings of a run, before anything is built."""

from itertools import pairwise

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from solo_d2.config.check import check_config
from solo_d2.config.models import is_panoptic, is_solo
from solo_d2.config.rules import Rule, above, at_least, between, one_of, require
from solo_d2.data.classes import is_category_list
from solo_d2.data.input_checks import check_input_config
from solo_d2.evaluation.average_precision import BACKENDS, COCO_MAX_PREDICTIONS
from solo_d2.modeling.speed import TRAINING_COMPILE, SpeedOptions
from solo_d2.modeling.tiles import Tiles, require_mergeable
from solo_d2.utils.errors import ConfigError

OPTIMIZERS = ("SGD", "AdamW")
# Values of SOLVER.AMP.DTYPE.
PRECISIONS = ("float16", "bfloat16")
# SOLVER.CLIP_GRADIENTS.CLIP_TYPE: the two of Detectron2 clip each parameter separately.
FULL_MODEL = "full_model"
CLIP_TYPES = ("value", "norm", FULL_MODEL)
SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")

SECTIONS = (
    *("SOLVER", "TEST", "DATASETS", "SEED", "OUTPUT_DIR", "CUDNN_BENCHMARK", "FLOAT32_PRECISION"),
    *("VIS_PERIOD", "MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.WEIGHTS_ALLOW", "MODEL.CLASSES"),
)
_RATE = at_least(0)
_ITERATIONS = at_least(1, " iteration")
RULES = {
    "SOLVER.OPTIMIZER": one_of(OPTIMIZERS),
    "SOLVER.AMP.DTYPE": one_of(PRECISIONS),
    "SOLVER.COMPILE": one_of(tuple(TRAINING_COMPILE)),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of(CLIP_TYPES),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": above(0),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": above(0, float("inf")),
    "SOLVER.EMA.DECAY": Rule(lambda decay: 0 <= decay < 1, "in [0, 1)"),
    "SOLVER.EARLY_STOPPING_PATIENCE": at_least(0, " evaluations; 0: never"),
    "SOLVER.IMS_PER_BATCH": at_least(1, " image"),
    "SOLVER.REFERENCE_IMS_PER_BATCH": at_least(0, " images; 0: never scaled"),
    "SOLVER.REFERENCE_WORLD_SIZE": at_least(0, " processes; 0: never scaled"),
    "SOLVER.ACCUMULATE_STEPS": at_least(1),
    "SOLVER.LR_SCHEDULER_NAME": one_of(SCHEDULES),
    "SOLVER.BASE_LR": _RATE,
    "SOLVER.BASE_LR_END": _RATE,
    "SOLVER.MOMENTUM": Rule(lambda momentum: 0 <= momentum < 1, "in [0, 1)"),
    "SOLVER.WEIGHT_DECAY": _RATE,
    "SOLVER.WEIGHT_DECAY_NORM": _RATE,
    "SOLVER.WEIGHT_DECAY_BIAS": Rule(
        lambda decay: decay is None or _RATE.holds(decay), f"{_RATE.allowed}, or None"
    ),
    "SOLVER.BIAS_LR_FACTOR": _RATE,
    "SOLVER.GAMMA": between(0, 1),
    "SOLVER.NUM_DECAYS": at_least(1),
    "SOLVER.MAX_ITER": _ITERATIONS,
    "SOLVER.STEPS": Rule(
        lambda steps: all(a < b for a, b in pairwise((0, *steps))),
        "increasing iterations, from 1 on",
    ),
    "SOLVER.WARMUP_ITERS": at_least(0, " iterations"),
    "SOLVER.WARMUP_FACTOR": between(0, 1),
    "SOLVER.WARMUP_METHOD": one_of(("linear", "constant")),
    "SOLVER.CHECKPOINT_PERIOD": _ITERATIONS,
    "TEST.EVAL_PERIOD": at_least(0, " iterations; 0: never"),
    "TEST.DETECTIONS_PER_IMAGE": at_least(1),
    "TEST.AP_BACKEND": one_of(("auto", *BACKENDS)),
    "TEST.AP_MAX_PREDICTIONS": at_least(COCO_MAX_PREDICTIONS),
    "TEST.PRECISE_BN.NUM_ITER": _ITERATIONS,
    # The range of random number generators.
    "SEED": between(-1, 2**31 - 1, "; -1: drawn at random"),
    "OUTPUT_DIR": Rule(lambda folder: bool(folder) and "\0" not in folder, "the name of a folder"),
    "FLOAT32_PRECISION": one_of(("", "highest", "high", "medium")),
    "VIS_PERIOD": at_least(0, " iterations; 0: never"),
    "MODEL.CLASSES": Rule(is_category_list, "a list of categories with id, isthing and name"),
    "MODEL.DEVICE": Rule(lambda name: _is_device(name), "a device of torch, such as cuda or cpu"),
}


def check_run_config(cfg: CfgNode, *, training: bool = True) -> None:
    """Raise a ConfigError for the first invalid key, or combination of keys, of a run.

    Keys of the model are checked when it is built. Without `training`, the batch size need not be
    a multiple of the number of processes.
    """
    check_config(cfg, SECTIONS, RULES)
    check_input_config(cfg)
    SpeedOptions.from_config(cfg)
    if Tiles.from_config(cfg) is not None and is_solo(cfg):
        contours = cfg.MODEL.SOLO.MASK_TARGET == "contour"
        require_mergeable(panoptic=is_panoptic(cfg), contours=contours)
    if training:
        _check_losses(cfg)
    solver, processes = cfg.SOLVER, comm.get_world_size() if training else 1
    batch, planned, base = solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE, solver.BASE_LR
    images = batch // processes
    cosine = solver.LR_SCHEDULER_NAME == "WarmupCosineLR"
    accelerated = solver.OPTIMIZER == "SGD" and solver.NESTEROV
    for key, holds, allowed in (
        ("IMS_PER_BATCH", batch % processes == 0, f"a multiple of the {processes} processes"),
        (
            "IMS_PER_BATCH",
            planned == 0 or batch % planned == 0,
            f"a multiple of the {planned} processes of SOLVER.REFERENCE_WORLD_SIZE",
        ),
        (
            "ACCUMULATE_STEPS",
            solver.ACCUMULATE_STEPS <= images,
            f"from 1 to the number of images per process ({images})",
        ),
        ("MOMENTUM", solver.MOMENTUM > 0 or not accelerated, "above 0 with SOLVER.NESTEROV"),
        ("BASE_LR", base > 0 or not training, "above 0, or nothing is trained"),
        (
            "BASE_LR_END",
            solver.BASE_LR_END <= base or not cosine,
            f"at most SOLVER.BASE_LR ({base})",
        ),
        (
            "EARLY_STOPPING_PATIENCE",
            solver.EARLY_STOPPING_PATIENCE == 0 or cfg.TEST.EVAL_PERIOD > 0,
            "0 without evaluations while training (TEST.EVAL_PERIOD 0)",
        ),
    ):
        require(holds, f"SOLVER.{key}", solver[key], allowed)


def _check_losses(cfg: CfgNode) -> None:
    """Raise a ConfigError if the weights of all losses are 0."""
    if not is_solo(cfg):
        return
    weights = {
        f"MODEL.SOLO.LOSS.{x}_WEIGHT": cfg.MODEL.SOLO.LOSS[f"{x}_WEIGHT"] for x in ("CLS", "MASK")
    }
    if is_panoptic(cfg):
        weights["MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"] = cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT
    if not any(weights.values()):
        raise ConfigError(f"{', '.join(weights)} are 0, so nothing is trained: set one above 0")


def _is_device(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True
