"""One figure for a model on a data set."""

import tempfile
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict

from solo_d2.evaluation.build import build_evaluator


def main_figure(
    cfg: CfgNode, dataset: str, model: Callable[[list[dict[str, Any]]], Any], metric: str
) -> float:
    """Evaluate a model; its predictions are not kept.

    Args:
        cfg: as of `build_evaluator`, and INPUT for the size of the images.
        dataset: in Detectron2's catalogs.
        model: anything that takes and gives what a SOLO model does in inference.
        metric: name of the figure, such as "segm/AP" (`solo_d2.engine.best_metric`).

    Returns:
        The figure in percent; NaN if it is not defined.
    """
    with tempfile.TemporaryDirectory() as folder:
        evaluator = build_evaluator(cfg, dataset, folder)
        results = inference_on_dataset(model, build_detection_test_loader(cfg, dataset), evaluator)
    return float(flatten_results_dict(results)[metric])
