"""Metrics of training steps and evaluations: transfer to the host, exchange, output."""

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

from solo_d2.config.models import is_panoptic
from solo_d2.utils.files import save_json

# Metric of the best checkpoint, by MODEL.SOLO.MASK_TARGET; panoptic models have their own.
BEST_METRIC = {"mask": "segm/AP", "contour": "contours/F"}
BEST_PANOPTIC_METRIC = "panoptic_seg/PQ"


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of a step in one process, before the optimizer takes it.

    Attributes:
        losses: loss terms.
        gradient_norm: norm of all gradients, the same in all processes. (Finding the largest
            component takes 20 times as long on a CPU.)
        data_time: seconds spent waiting for the batch.
        num_unreadable: number of image files newly found unreadable in the batch.
    """

    losses: dict[str, float]
    gradient_norm: float
    data_time: float
    num_unreadable: int

    @property
    def bad_losses(self) -> list[str]:
        """Names of the terms that are infinite or NaN."""
        return [name for name, loss in self.losses.items() if not math.isfinite(loss)]

    @property
    def has_bad_gradient(self) -> bool:
        """Whether a gradient is infinite or NaN, or so large (above 1e19) that the norm is."""
        return not math.isfinite(self.gradient_norm)


class MeasuredStep:
    """Metrics of a step on the device, and their transfer to the host.

    The transfer starts at once and does not block; `read` may follow a step later.

    Attributes:
        parameter_norms: norm of each gradient, float32, on the device.
    """

    def __init__(
        self,
        losses: Mapping[str, Tensor],
        gradients: list[Tensor],
        *,
        data_time: float,
        num_unreadable: int,
    ):
        """Start the transfer of scalar losses and the norm of the (unscaled) gradients."""
        self.names = list(losses)
        self.data_time, self.num_unreadable = data_time, num_unreadable
        values = [value.detach().float().reshape(()) for value in losses.values()]
        self.parameter_norms = torch.zeros(0)
        if gradients:  # as torch.nn.utils.get_total_norm, which keeps only the total
            self.parameter_norms = torch.stack(torch._foreach_norm(gradients)).float()
            values.append(torch.linalg.vector_norm(self.parameter_norms))
        self._numbers = torch.stack(values)
        self._on_host = self._numbers.to("cpu", non_blocking=True)  # pinned
        self._transfer = torch.cuda.Event() if self._numbers.is_cuda else None
        if self._transfer is not None:
            self._transfer.record()

    def is_bad(self) -> Tensor:
        """Return a float32 scalar on the device: 1 if a value in any process is not finite."""
        bad = (~self._numbers.isfinite().all()).float()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        return bad

    def read(self) -> list[StepMetrics]:
        """Wait for the transfer; return the metrics of all processes, by rank."""
        if self._transfer is not None:
            self._transfer.synchronize()
        numbers = [*self._on_host.tolist(), 0.0]  # the norm without any gradients
        num = len(self.names)
        metrics = StepMetrics(
            losses=dict(zip(self.names, numbers[:num], strict=True)),
            gradient_norm=numbers[num],
            data_time=self.data_time,
            num_unreadable=self.num_unreadable,
        )
        everyone: list[StepMetrics] = comm.all_gather(metrics)
        return everyone


def write_metrics(metrics: Sequence[StepMetrics], iteration: int) -> None:
    """Write finite metrics of all processes like Detectron2's trainer."""
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
    """Write results to OUTPUT_DIR/evaluation.json, after `others`.

    The file maps names to numbers, or null if undefined.
    """
    if not comm.is_main_process():
        return
    metrics = {key: float(value) for key, value in flatten_results_dict(results).items()}
    defined = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
    save_json(Path(cfg.OUTPUT_DIR) / "evaluation.json", {**others, **defined})


def best_metric(cfg: CfgNode) -> str:
    """Return the name of the metric that determines the best checkpoint."""
    return BEST_PANOPTIC_METRIC if is_panoptic(cfg) else BEST_METRIC[cfg.MODEL.SOLO.MASK_TARGET]
