"""Metrics of a training step: brought to the host, shared by the processes, written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn.utils import get_total_norm


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
