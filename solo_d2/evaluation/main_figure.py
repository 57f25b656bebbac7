"""One figure for a model on a data set."""

import tempfile

from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict

from solo_d2.evaluation.build import build_evaluator
from solo_d2.evaluation.run import Model, evaluate_dataset, evaluation_loader


def main_figure(cfg: CfgNode, dataset: str, model: Model, metric: str) -> float:
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
        results = evaluate_dataset(model, evaluation_loader(cfg, dataset), evaluator)
    return float(flatten_results_dict(results)[metric])
