"""Seeds of steps, and hooks for EMA weights, the best checkpoint and early stopping."""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.engine import BestCheckpointer, HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from solo_d2.checkpoint.checkpointer import load_matching

logger = logging.getLogger("solo_d2")


def seed_step(seed: int, iteration: int, process: int) -> None:
    """Seed Python, NumPy and torch for a step, so that a resumed training needs no saved state."""
    sequence = np.random.SeedSequence([seed, iteration, process])
    seed_all_rng(int(sequence.generate_state(1)[0]))


class EMA(HookBase):
    """Keep an exponential moving average of the weights.

    Buffers are copied: they are constants, or averages already (running statistics of BatchNorm).
    `torch.optim.swa_utils.AveragedModel` does the same but synchronizes in each step.

    Attributes:
        average: the averaged model, of the model's own class.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Start from the model's weights; call `restart` after loading others.

        Args:
            model: the trained model, without DistributedDataParallel.
            decay: decay of the average in [0, 1); at most (1 + i) / (10 + i) after i steps, so that
                the initial weights have little influence in short trainings.
        """
        self.model = model
        self.decay = decay
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.num_steps = 0

    def restart(self) -> None:
        """Set the average to the model's weights."""
        self.average.load_state_dict(self.model.state_dict())
        self.num_steps = 0

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average towards the weights."""
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        update = get_ema_multi_avg_fn(decay)
        update(list(self.average.parameters()), list(self.model.parameters()), self.num_steps)
        for average, current in zip(self.average.buffers(), self.model.buffers(), strict=True):
            average.copy_(current)
        self.num_steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps; the checkpointer saves the weights."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.num_steps = state["num_steps"]


class TrainedWeights:
    """The weights that training continues from, in a checkpoint of EMA weights.

    Attributes:
        loaded: whether a checkpoint contained them.
    """

    def __init__(self, model: nn.Module, allow: Sequence[str]):
        """Wrap the trained model for the checkpointer; `allow` is MODEL.WEIGHTS_ALLOW."""
        self.model = model
        self.allow = allow
        self.loaded = False

    def state_dict(self) -> dict[str, Any]:
        """Return the model's weights."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights; ConfigError if they differ in parameters that `allow` does not name."""
        load_matching(self.model, state, None, allow=self.allow)
        self.loaded = True


class ResumableBestCheckpointer(BestCheckpointer):
    """Detectron2's hook, with the best metric kept when training is resumed."""

    def _best_checking(self) -> None:
        """Save the model if it is the best one, after updating the state that is saved with it."""
        value, iteration = self.trainer.storage.latest().get(self._val_metric, (None, None))
        if value is None:
            logger.warning(
                f"{self._val_metric} was not evaluated, so no checkpoint can be the best"
            )
            return
        previous = "none" if self.best_metric is None else f"{self.best_metric:.3f}"
        if math.isfinite(value) and (self.best_metric is None or value > self.best_metric):
            self._update_best(value, iteration)
            self._checkpointer.save(self._file_prefix, iteration=iteration)
            logger.info(f"{self._val_metric} {value:.3f} is the best (previously {previous})")
        else:
            logger.info(f"{self._val_metric} {value:.3f} is not the best ({previous})")

    def state_dict(self) -> dict[str, Any]:
        """Return the best metric so far and its iteration."""
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]


class EndOfTraining(BaseException):
    """Raised to end training early; not an Exception, which Detectron2 reports as a failure.

    The hooks' `after_train` runs, without the final evaluation.
    """


class EarlyStopping(HookBase):
    """End training after several evaluations without a new best checkpoint.

    Register it in every process, after the hooks that evaluate and save the best checkpoint.
    """

    def __init__(self, best: ResumableBestCheckpointer | None, *, period: int, patience: int):
        """Create the hook.

        Args:
            best: the hook of the best checkpoint; None except in the main process.
            period: iterations between evaluations.
            patience: evaluations without improvement after which training ends.
        """
        self.best = best
        self.period = period
        self.patience = patience
        self.stopped = False

    def after_step(self) -> None:
        """Decide after each evaluation, for all processes; save the final weights at the end."""
        done = self.trainer.iter + 1
        if done % self.period or done == self.trainer.max_iter:
            return
        exhausted = False
        if self.best is not None:
            best_iter = -1 if self.best.best_iter is None else self.best.best_iter
            exhausted = (self.trainer.iter - best_iter) // self.period >= self.patience
        self.stopped = any(comm.all_gather(exhausted))
        if self.stopped and self.best is not None:
            logger.info(
                f"No better checkpoint in {self.patience} evaluations: training ends after "
                f"{done} iterations"
            )
            self.trainer.checkpointer.save("model_final", iteration=self.trainer.iter)

    def before_step(self) -> None:
        """Leave the loop, after all hooks have run for the last step."""
        if self.stopped:
            raise EndOfTraining
