"""Training step with gradient accumulation, mixed precision and gradient clipping.

All processes check the metrics of a step together: non-finite losses and gradients
(`solo_d2.engine.bad_step`), and the number of unreadable images (`solo_d2.data.unreadable`). They
do so before the optimizer step, or, on CUDA with a fused optimizer, before the next one: a fused
optimizer skips a step with non-finite values on the device, so the host need not wait.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from solo_d2.data.unreadable import UnreadableImages
from solo_d2.engine.bad_step import (
    BadSteps,
    RunRecord,
    describe_bad_numbers,
    stop_for_bad_numbers,
)
from solo_d2.engine.checks import FULL_MODEL
from solo_d2.engine.metrics import MeasuredStep, StepMetrics, write_metrics
from solo_d2.engine.optimizer_state import load_optimizer, save_optimizer
from solo_d2.utils.errors import BadNumbersError, ConfigError

logger = logging.getLogger("solo_d2")

# Iterations between logged gradient norms, as in Detectron2's log.
LOG_PERIOD = 20


def unwrap(model: nn.Module) -> Any:
    """Return the model without DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def step_options(cfg: CfgNode) -> dict[str, Any]:
    """Return the options of `StepTrainer` for a config."""
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    clip_gradients = None
    if clip.ENABLED and clip.CLIP_TYPE == FULL_MODEL:
        clip_gradients = partial(
            clip_grad_norm_, max_norm=clip.CLIP_VALUE, norm_type=clip.NORM_TYPE
        )
    return {
        "num_micro_batches": solver.ACCUMULATE_STEPS,
        "precision": getattr(torch, solver.AMP.DTYPE) if solver.AMP.ENABLED else None,
        "clip_gradients": clip_gradients,
        "max_unreadable": cfg.DATALOADER.MAX_UNREADABLE_IMAGES,
        "read_periods": (solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD, solver.MAX_ITER),
        "record": RunRecord(cfg.OUTPUT_DIR, cfg.dump(), cfg.SEED),
    }


@dataclass(frozen=True)
class _Step:
    """A step whose metrics the host has not checked yet."""

    iteration: int
    batch: list[dict[str, Any]]
    measured: MeasuredStep
    unreadable: dict[str, str]
    parameters: list[Tensor]  # those with a gradient
    loss_scale: Tensor
    clip_norm: Tensor | None


class StepTrainer(SimpleTrainer):
    """Detectron2's inner trainer, with mixed precision for the CPU and bfloat16 too.

    Gradients of micro-batches add up to those of the whole batch, since the model normalizes losses
    by counts of the whole batch (`SOLO.plan_micro_batches`). Processes exchange gradients once per
    batch.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        num_micro_batches: int = 1,  # more than one requires `plan_micro_batches` of the model
        precision: torch.dtype | None = None,  # float16 or bfloat16 for mixed precision
        clip_gradients: Callable[[list[Tensor]], Tensor] | None = None,  # returns the norm before
        max_unreadable: int = 0,
        record: RunRecord | None = None,  # None: bad steps are not dumped
        init_scale: float = 2.0**16,  # of the gradients with float16
        # Periods (0: never) of steps whose metrics are read at once even with `reads_late`, since
        # something is saved or evaluated after them.
        read_periods: Collection[int] = (),
        # Read metrics one step late, which needs a fused optimizer; None: on CUDA if it is fused.
        reads_late: bool | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        if num_micro_batches > 1 and not hasattr(unwrap(model), "plan_micro_batches"):
            raise ConfigError(
                f"SOLVER.ACCUMULATE_STEPS is {num_micro_batches}, but must be 1 for a "
                f"{type(unwrap(model)).__name__}: only SOLO models accumulate gradients"
            )
        self.num_micro_batches = num_micro_batches
        self.clip_gradients = clip_gradients
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device_type = self.parameters[0].device.type
        self.precision = precision
        self.unreadable = UnreadableImages(max_unreadable)
        self.bad_steps = BadSteps(skips_bad_gradients=precision == torch.float16)
        self.record = record
        if reads_late is None:  # the attribute is set by `fused`
            can_skip = getattr(optimizer, "_step_supports_amp_scaling", False)
            reads_late = self.device_type == "cuda" and can_skip
        self.reads_late = reads_late
        self.read_periods = (LOG_PERIOD, *filter(None, read_periods))
        self._unread: _Step | None = None
        _fill_momentum(optimizer)
        # bfloat16 has the range of float32 and needs no scaling.
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, init_scale, enabled=precision == torch.float16
        )

    def run_step(self) -> None:
        """Train on the next batch.

        Raises:
            BadNumbersError: losses or gradients are not finite.
            DatasetError: too many images could not be read, or one cannot be used.
        """
        assert self.model.training
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        unreadable = self.unreadable.take_new(batch)
        self.optimizer.zero_grad()
        losses = self.compute_gradients(batch)
        step = self._measure(batch, losses, unreadable, data_time)
        if not self.reads_late:
            self._judge(step)
            self.after_backward()
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
            return
        self._judge_unread()
        self.after_backward()
        self._step_unless(step.measured.is_bad())
        self._unread = step
        if any((self.iter + 1) % period == 0 for period in self.read_periods):
            self._judge_unread()

    def _measure(
        self,
        batch: list[dict[str, Any]],
        losses: Mapping[str, Tensor],
        unreadable: dict[str, str],
        data_time: float,
    ) -> _Step:
        """Start the transfer of a step's metrics, and clip its gradients."""
        with_gradient = [p for p in self.parameters if p.grad is not None]
        measured = MeasuredStep(
            losses,
            [p.grad for p in with_gradient if p.grad is not None],
            data_time=data_time,
            num_unreadable=len(unreadable),
        )
        loss_scale = self.grad_scaler.scale(torch.ones((), device=self.parameters[0].device))
        clip_norm = None if self.clip_gradients is None else self.clip_gradients(self.parameters)
        return _Step(self.iter, batch, measured, unreadable, with_gradient, loss_scale, clip_norm)

    def _step_unless(self, is_bad: Tensor) -> None:
        """Step a fused optimizer, which skips the step on the device if `is_bad` is 1."""
        self.optimizer.grad_scale, self.optimizer.found_inf = None, is_bad
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.grad_scale, self.optimizer.found_inf
        self.grad_scaler.update()

    def _judge_unread(self) -> None:
        """Check the previous step if that is still due."""
        step, self._unread = self._unread, None
        if step is not None:
            self._judge(step)

    def _judge(self, step: _Step) -> None:
        """Write the metrics of a step if they are finite; raise if training must stop."""
        metrics = step.measured.read()
        if any(m.num_unreadable for m in metrics):
            parts = comm.all_gather(step.unreadable)
            self.unreadable.add({k: v for part in parts for k, v in part.items()})
        if self.bad_steps.add(metrics):
            raise self._stop(step, metrics)
        if any(m.bad_losses for m in metrics):
            logger.warning(f"Iteration {step.iteration}: {describe_bad_numbers(metrics)}")
            return
        write_metrics(metrics, step.iteration)
        if step.clip_norm is not None and (step.iteration + 1) % LOG_PERIOD == 0:
            if comm.is_main_process():
                storage = get_event_storage()
                storage.put_scalar("gradient_norm", step.clip_norm, cur_iter=step.iteration)

    def _stop(self, step: _Step, metrics: list[StepMetrics]) -> BadNumbersError:
        """Return the error for a step with non-finite values."""
        model = unwrap(self.model)
        norms = dict(zip(step.parameters, step.measured.parameter_norms.tolist(), strict=True))
        return stop_for_bad_numbers(
            model,
            step.batch,
            metrics,
            gradient_norms={n: norms[p] for n, p in model.named_parameters() if p in norms},
            iteration=step.iteration,
            record=self.record,
            others={
                "num_micro_batches": self.num_micro_batches,
                "precision": str(self.precision or torch.float32).removeprefix("torch."),
                "loss_scale": step.loss_scale.item(),
            },
        )

    def compute_gradients(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Add the unscaled gradients of a batch to those of the parameters; return its losses."""
        total: dict[str, Tensor] = {}
        for arguments, exchange in self._micro_batches(batch):
            with exchange:
                with torch.autocast(
                    self.device_type, self.precision, enabled=self.precision is not None
                ):
                    losses = self.model(*arguments)
                self.grad_scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + loss.detach()
        # Not in the optimizer: a fused step would unscale only after clipping, which needs true
        # gradients.
        self.grad_scaler.unscale_(self.optimizer)
        return total

    def _micro_batches(
        self, batch: list[dict[str, Any]]
    ) -> Iterator[tuple[tuple[Any, ...], AbstractContextManager[None]]]:
        """Yield the model's arguments for each micro-batch, and its context."""
        if self.num_micro_batches == 1:
            yield (batch,), nullcontext()
            return
        num = self.num_micro_batches
        bounds = [len(batch) * i // num for i in range(num + 1)]
        micro_batches = [batch[start:end] for start, end in pairwise(bounds)]
        for plan in unwrap(self.model).plan_micro_batches(micro_batches):
            last = plan.index == num - 1 or not isinstance(self.model, DistributedDataParallel)
            exchange = nullcontext() if last else self.model.no_sync()
            yield (micro_batches[plan.index], plan), exchange

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration, the optimizer's state and the scale of the gradients."""
        return {
            **TrainerBase.state_dict(self),
            "optimizer": save_optimizer(self.optimizer, unwrap(self.model)),
            "grad_scaler": self.grad_scaler.state_dict(),
        }

    def load_state_dict(
        self, state_dict: Mapping[str, Any], *, restarted: Collection[str] = ()
    ) -> None:
        """Continue from a saved state, except for the parameters named in `restarted`.

        A changed precision starts with its own gradient scale.
        """
        TrainerBase.load_state_dict(self, state_dict)
        load_optimizer(
            self.optimizer, unwrap(self.model), state_dict["optimizer"], restarted=restarted
        )
        scale = state_dict.get("grad_scaler")
        if scale and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(scale)
        _fill_momentum(self.optimizer)


def _fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Initialize missing momentum buffers of fused SGD with zeros.

    Otherwise its first step creates them, uninitialized if that step is skipped, and fails if only
    some parameters lack them.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum"):
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
