"""Metrics of training steps and evaluations: brought to the host, shared, written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn.utils import get_total_norm

from solo_d2.config.models import is_panoptic
from solo_d2.utils.files import save_json

# By MODEL.SOLO.MASK_TARGET, the metric that decides which checkpoint is the best; of a panoptic
# model it is another.
BEST_METRIC = {"mask": "segm/AP", "contour": "contours/F"}
BEST_PANOPTIC_METRIC = "panoptic_seg/PQ"


@dataclass(frozen=True)
class StepMetrics:
    """What a process knows of a step before the optimizer takes it.

    Attributes:
        losses: the terms, as numbers.
        gradient_norm: of all gradients together; of several processes the same in all, since they
            have exchanged gradients. (The largest component takes a CPU 20 times as long to find.)
        data_time: seconds that the process waited for its batch.
        num_unreadable: image files that it could not read and did not know of.
    """

    losses: dict[str, float]
    gradient_norm: float
    data_time: float
    num_unreadable: int

    @property
    def bad_losses(self) -> list[str]:
        """The terms that are infinite or NaN."""
        return [name for name, loss in self.losses.items() if not math.isfinite(loss)]

    @property
    def has_bad_gradient(self) -> bool:
        """Whether a gradient is infinite or NaN, or so large that the norm is (above 1e19)."""
        return not math.isfinite(self.gradient_norm)


def measure_step(
    losses: Mapping[str, Tensor],
    gradients: Sequence[Tensor],
    *,
    data_time: float,
    num_unreadable: int,
) -> list[StepMetrics]:
    """Bring the metrics of a step to the host, in one transfer, and exchange them.

    Detectron2 waits for the device at this place too, once for each loss, and gathers the losses in
    the main process; here all processes get them, so that all decide alike.

    Args:
        losses: scalars, on the device.
        gradients: of all parameters, true to scale.
        data_time: see `StepMetrics`.
        num_unreadable: see `StepMetrics`.

    Returns:
        The metrics of each process, by rank.
    """
    norm = [get_total_norm(gradients)] if gradients else []
    values = [*losses.values(), *norm]
    numbers = torch.stack([value.detach().float().reshape(()) for value in values]).tolist()
    metrics = StepMetrics(
        losses=dict(zip(losses, numbers[: len(losses)], strict=True)),
        gradient_norm=numbers[-1] if gradients else 0.0,
        data_time=data_time,
        num_unreadable=num_unreadable,
    )
    everyone: list[StepMetrics] = comm.all_gather(metrics)
    return everyone


def write_metrics(metrics: Sequence[StepMetrics], iteration: int) -> None:
    """Write the metrics that Detectron2's trainer writes, under its names.

    Args:
        metrics: of each process, by rank; all losses are finite.
        iteration: of the step.
    """
    storage = get_event_storage()
    own = metrics[comm.get_rank()]
    storage.put_scalar("rank_data_time", own.data_time, cur_iter=iteration)
    if not comm.is_main_process():
        return
    storage.put_scalar("data_time", max(m.data_time for m in metrics), cur_iter=iteration)
    means = {name: float(np.mean([m.losses[name] for m in metrics])) for name in own.losses}
    storage.put_scalar("total_loss", sum(means.values()), cur_iter=iteration)
    if len(means) > 1:
        storage.put_scalars(cur_iter=iteration, **means)


def save_metrics(
    cfg: CfgNode, results: Mapping[str, Any], others: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write metrics to OUTPUT_DIR/evaluation.json, flat and with null for what is not defined.

    Args:
        cfg: OUTPUT_DIR is read.
        results: of evaluators, nested.
        others: metrics to write before them, in the form of the file.
    """
    if not comm.is_main_process():
        return
    metrics = {key: float(value) for key, value in flatten_results_dict(results).items()}
    defined = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
    save_json(Path(cfg.OUTPUT_DIR) / "evaluation.json", {**others, **defined})


def best_metric(cfg: CfgNode) -> str:
    """Name of the metric by which checkpoints are compared."""
    return BEST_PANOPTIC_METRIC if is_panoptic(cfg) else BEST_METRIC[cfg.MODEL.SOLO.MASK_TARGET]
