"""Evaluators, and which of them a data set gets."""

from solo_d2.evaluation.build import EVALUATORS, build_evaluator
from solo_d2.evaluation.packages import provide_cityscapes_scripts

__all__ = ["EVALUATORS", "build_evaluator", "provide_cityscapes_scripts"]
