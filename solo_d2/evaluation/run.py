"""Evaluate a model on a data set.

Unreadable images do not stop the evaluation: they count as images without predictions.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from solo_d2.data.mapper import SOLODatasetMapper
from solo_d2.data.other_models import without_other_inputs
from solo_d2.data.own_loaders import use_own_loaders
from solo_d2.data.unreadable import UNREADABLE
from solo_d2.evaluation.build import build_evaluator
from solo_d2.utils.errors import DatasetError

logger = logging.getLogger("solo_d2")

Model = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


class NotingMapper:
    """A mapper for inference that returns the error of an unreadable image instead of raising."""

    def __init__(self, mapper: Callable[[dict[str, Any]], dict[str, Any]]):
        """Wrap a mapper that raises DatasetError."""
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the mapper's sample, or the dataset dict with the error as `UNREADABLE`."""
        try:
            return self.mapper(record)
        except DatasetError as error:
            known = {key: value for key, value in record.items() if key != "annotations"}
            return {**known, UNREADABLE: str(error)}


class SkippingModel(nn.Module):
    """A model that skips unreadable images.

    Attributes:
        unreadable: a line for each such image.
    """

    def __init__(self, model: Model):
        """Wrap a model or a callable with the same interface."""
        super().__init__()
        self.model = model
        self.unreadable: list[str] = []
        self.training = getattr(model, "training", False)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the model's outputs, with an empty dict for each unreadable image."""
        for reason in (sample[UNREADABLE] for sample in batched_inputs if UNREADABLE in sample):
            self.unreadable.append(reason)
            logger.warning("%s (it counts as an image without predictions)", reason)
        readable = [sample for sample in batched_inputs if UNREADABLE not in sample]
        outputs = iter(self.model(readable) if readable else [])
        return [{} if UNREADABLE in sample else next(outputs) for sample in batched_inputs]


def evaluation_loader(cfg: CfgNode, dataset_name: str) -> Any:
    """Build the loader of a data set for `evaluate_dataset`."""
    use_own_loaders([dataset_name])
    mapper = NotingMapper(SOLODatasetMapper(cfg, is_train=False))
    return build_detection_test_loader(without_other_inputs(cfg), dataset_name, mapper=mapper)


def evaluate_dataset(
    model: Model, loader: Iterable[Any], evaluator: DatasetEvaluator
) -> dict[str, Any]:
    """Run a model over a data set; all processes call it together.

    Args:
        model: returns Detectron2's outputs of a batch. It runs in evaluation mode; the mode of each
            module is restored afterwards.
        loader: of `evaluation_loader`, or any other of Detectron2's for inference.
        evaluator: takes an empty output for an image without predictions.

    Returns:
        The evaluator's metrics. The main process logs how many images could not be read.
    """
    skipping = SkippingModel(model)
    # Detectron2 sets all modules to the mode of the model.
    modes = [(module, module.training) for module in skipping.modules()]
    try:
        results: dict[str, Any] = inference_on_dataset(skipping, loader, evaluator)
    finally:
        for module, training in modes:
            module.training = training
    lines = [line for part in comm.gather(skipping.unreadable) for line in part]
    if lines:
        logger.warning(
            f"{len(lines)} images could not be read; these metrics count them as images without "
            "predictions:" + "".join(f"\n  {line}" for line in lines)
        )
    return results


def main_metric(cfg: CfgNode, dataset: str, model: Model, metric: str) -> float:
    """Evaluate a model by one metric, such as "segm/AP", in percent; predictions are not kept.

    Args:
        cfg: as of `build_evaluator`, and INPUT for the size of the images.
        dataset: in Detectron2's catalogs.
        model: a callable with the interface of a SOLO model in inference.
        metric: its key; NaN if it is undefined.
    """
    with tempfile.TemporaryDirectory() as folder:
        evaluator = build_evaluator(cfg, dataset, folder)
        results = evaluate_dataset(model, evaluation_loader(cfg, dataset), evaluator)
    return float(flatten_results_dict(results)[metric])
