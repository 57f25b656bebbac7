"""Evaluators, and which of them a data set gets."""

from solo_d2.evaluation.build import EVALUATORS, build_evaluator
from solo_d2.evaluation.run import evaluate_dataset, evaluation_loader

__all__ = [
    "EVALUATORS",
    "build_evaluator",
    "evaluate_dataset",
    "evaluation_loader",
]
