"""One step of training: a batch in parts, in mixed precision, with the gradients clipped."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from solo_d2.engine.checks import FULL_MODEL
from solo_d2.errors import ConfigError

# Iterations from one written norm of the gradients to the next, those of Detectron2's log.
LOG_PERIOD = 20


def unwrap(model: nn.Module) -> Any:
    """The model itself, without what makes it train in several processes."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def step_options(cfg: CfgNode) -> dict[str, Any]:
    """What `StepTrainer` takes beside model, data and optimizer."""
    solver = cfg.SOLVER
    clip = solver.CLIP_GRADIENTS
    clip_full_model = clip.ENABLED and clip.CLIP_TYPE == FULL_MODEL
    return {
        "num_parts": solver.ACCUMULATE_STEPS,
        "precision": getattr(torch, solver.AMP.DTYPE) if solver.AMP.ENABLED else None,
        "clip_gradients": partial(
            clip_grad_norm_, max_norm=clip.CLIP_VALUE, norm_type=clip.NORM_TYPE
        )
        if clip_full_model
        else None,
    }


class StepTrainer(SimpleTrainer):
    """Detectron2's inner trainer; with mixed precision also for the CPU and bfloat16.

    A batch may be worked off in parts to save memory. Their gradients add up to those of the whole
    batch, since the model divides the losses of each by counts of the whole (`SOLO.plan_parts`).
    In several processes gradients are exchanged once a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        num_parts: int = 1,
        precision: torch.dtype | None = None,
        clip_gradients: Callable[[list[Tensor]], Tensor] | None = None,
    ):
        """Make the trainer.

        Args:
            model: gives a dict of losses of a batch.
            data_loader: batches.
            optimizer: of the model's parameters.
            num_parts: parts of a batch; with more than one the model needs `plan_parts`.
            precision: torch.float16 or torch.bfloat16 for mixed precision; None for none.
            clip_gradients: shortens the gradients of a list of parameters in place and returns the
                norm that they had.
        """
        super().__init__(model, data_loader, optimizer)
        if num_parts > 1 and not hasattr(unwrap(model), "plan_parts"):
            raise ConfigError(
                f"SOLVER.ACCUMULATE_STEPS is {num_parts}, but must be 1 for a model such as "
                f"{type(unwrap(model)).__name__}: only SOLO models train on parts of a batch"
            )
        self.num_parts = num_parts
        self.clip_gradients = clip_gradients
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device_type = self.parameters[0].device.type
        self.precision = precision
        # bfloat16 has the range of float32 and needs no scaling.
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=precision == torch.float16
        )

    def run_step(self) -> None:
        """Take a batch and make a step of the optimizer."""
        assert self.model.training
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self._backward(batch)
        # Here rather than in the optimizer: AdamW's fused step would leave it until after the
        # clipping, which must see true gradients.
        self.grad_scaler.unscale_(self.optimizer)
        if self.clip_gradients is not None:
            norm = self.clip_gradients(self.parameters)
            if (self.iter + 1) % LOG_PERIOD == 0 and comm.is_main_process():
                get_event_storage().put_scalar("gradient_norm", norm)  # waits for the device
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Add the gradients of a batch to the parameters', and return its losses."""
        total: dict[str, Tensor] = {}
        for arguments, exchange in self._parts(batch):
            with exchange:
                with torch.autocast(
                    self.device_type, self.precision, enabled=self.precision is not None
                ):
                    losses = self.model(*arguments)
                self.grad_scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + loss.detach()
        return total

    def _parts(
        self, batch: list[dict[str, Any]]
    ) -> Iterator[tuple[tuple[Any, ...], AbstractContextManager[None]]]:
        """The model's arguments for each part, and the context that it is trained in."""
        if self.num_parts == 1:
            yield (batch,), nullcontext()
            return
        bounds = [len(batch) * i // self.num_parts for i in range(self.num_parts + 1)]
        parts = [batch[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
        plans = unwrap(self.model).plan_parts(parts)
        for inputs, plan in zip(parts, plans, strict=True):
            more_follow = plan.index < self.num_parts - 1
            if more_follow and isinstance(self.model, DistributedDataParallel):
                yield (inputs, plan), self.model.no_sync()
            else:
                yield (inputs, plan), nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Iteration, optimizer and the scale of the gradients."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state; another precision starts with a scale of its own."""
        super().load_state_dict(state_dict)
        scale = state_dict.get("grad_scaler")
        if scale and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(scale)
