"""Training: setup of a run, the trainer, its steps and hooks."""

from solo_d2.engine.metrics import BEST_METRIC, best_metric
from solo_d2.engine.setup import argument_parser, scale_schedule, setup
from solo_d2.engine.trainer import Trainer, evaluate

__all__ = [
    "BEST_METRIC",
    "Trainer",
    "argument_parser",
    "best_metric",
    "evaluate",
    "scale_schedule",
    "setup",
]
