"""The figures of a training step: brought to the host, shared by the processes, judged, written."""

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
class StepFigures:
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
) -> list[StepFigures]:
    """Bring the figures of a step to the host, in one transfer, and exchange them.

    Detectron2 waits for the device at this place too, once for each loss, and gathers the losses in
    the main process; here all processes get them, so that all decide alike.

    Args:
        losses: scalars, on the device.
        gradients: of all parameters, true to scale.
        data_time: see `StepFigures`.
        num_unreadable: see `StepFigures`.

    Returns:
        The figures of each process, by rank.
    """
    norm = [get_total_norm(gradients)] if gradients else []
    values = [*losses.values(), *norm]
    numbers = torch.stack([value.detach().float().reshape(()) for value in values]).tolist()
    figures = StepFigures(
        losses=dict(zip(losses, numbers[: len(losses)], strict=True)),
        gradient_norm=numbers[-1] if gradients else 0.0,
        data_time=data_time,
        num_unreadable=num_unreadable,
    )
    everyone: list[StepFigures] = comm.all_gather(figures)
    return everyone


def write_figures(figures: Sequence[StepFigures], iteration: int) -> None:
    """Write the metrics that Detectron2's trainer writes, under its names.

    Args:
        figures: of each process, by rank; all losses are finite.
        iteration: of the step.
    """
    storage = get_event_storage()
    own = figures[comm.get_rank()]
    storage.put_scalar("rank_data_time", own.data_time, cur_iter=iteration)
    if not comm.is_main_process():
        return
    storage.put_scalar("data_time", max(f.data_time for f in figures), cur_iter=iteration)
    means = {name: float(np.mean([f.losses[name] for f in figures])) for name in own.losses}
    storage.put_scalar("total_loss", sum(means.values()), cur_iter=iteration)
    if len(means) > 1:
        storage.put_scalars(cur_iter=iteration, **means)


def describe_bad_numbers(figures: Sequence[StepFigures]) -> str:
    """What is infinite or NaN in a step, and the other loss terms beside it."""
    parts = []
    for rank, own in enumerate(figures):
        where = f" in process {rank}" if len(figures) > 1 else ""
        if own.bad_losses:
            bad = ", ".join(f"{name} is {own.losses[name]}" for name in own.bad_losses)
            fine = [f"{k} is {v:.4g}" for k, v in own.losses.items() if k not in own.bad_losses]
            parts.append(bad + where + (f" (finite: {', '.join(fine)})" if fine else ""))
    if not parts:
        terms = ", ".join(f"{name} is {loss:.4g}" for name, loss in figures[0].losses.items())
        parts.append(f"gradients are not finite, though the losses are ({terms})")
    return "; ".join(parts)
