"""Refuses settings of the solver that cannot work, before anything is built."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from solo_d2.errors import ConfigError
from solo_d2.modeling.training_speed import TRAINING_COMPILE

OPTIMIZERS = ("SGD", "AdamW")
# What SOLVER.AMP.DTYPE may be; names of torch's.
PRECISIONS = ("float16", "bfloat16")
# SOLVER.CLIP_GRADIENTS.CLIP_TYPE: Detectron2's own two clip each parameter for itself.
FULL_MODEL = "full_model"
CLIP_TYPES = ("value", "norm", FULL_MODEL)


def check_solver_config(cfg: CfgNode) -> None:
    """Raise a ConfigError for the first key of SOLVER that cannot work."""
    solver = cfg.SOLVER
    for key, value, choices in (
        ("OPTIMIZER", solver.OPTIMIZER, OPTIMIZERS),
        ("AMP.DTYPE", solver.AMP.DTYPE, PRECISIONS),
        ("COMPILE", solver.COMPILE, tuple(TRAINING_COMPILE)),
        ("CLIP_GRADIENTS.CLIP_TYPE", solver.CLIP_GRADIENTS.CLIP_TYPE, CLIP_TYPES),
    ):
        _require(value in choices, key, value, f"one of {choices}")
    clip, decay, parts = solver.CLIP_GRADIENTS, solver.EMA.DECAY, solver.ACCUMULATE_STEPS
    if clip.ENABLED:
        _require(clip.CLIP_VALUE > 0, "CLIP_GRADIENTS.CLIP_VALUE", clip.CLIP_VALUE, "above 0")
    _require(0 <= decay < 1, "EMA.DECAY", decay, "in [0, 1)")
    images = solver.IMS_PER_BATCH // comm.get_world_size()
    allowed = f"from 1 to the images that a process has of a batch ({images})"
    _require(1 <= parts <= max(1, images), "ACCUMULATE_STEPS", parts, allowed)
    patience = solver.EARLY_STOPPING_PATIENCE
    _require(patience >= 0, "EARLY_STOPPING_PATIENCE", patience, "0 or a number of evaluations")
    allowed = "0 without evaluations while training (TEST.EVAL_PERIOD 0)"
    watched = patience == 0 or cfg.TEST.EVAL_PERIOD > 0
    _require(watched, "EARLY_STOPPING_PATIENCE", patience, allowed)


def _require(holds: bool, key: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"SOLVER.{key} is {value!r}, but must be {allowed}")
