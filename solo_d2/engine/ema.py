"""An exponential moving average of the weights."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from solo_d2.checkpoint.checkpointer import load_matching


class EMA(HookBase):
    """Keeps the average up to date after each step.

    Buffers, such as the running statistics of BatchNorm, are averages already, or constants: they
    are copied. `torch.optim.swa_utils.AveragedModel` does the same, but waits for the device at
    each step.

    Attributes:
        average: the averaged model, of the model's own class.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Start at the model's weights; `restart` after they have been loaded.

        Args:
            model: what is trained, without DistributedDataParallel.
            decay: share of the average that is kept in a step, in [0, 1). After i steps at most
                (1 + i) / (10 + i) are, so that the average forgets its start in short trainings.
        """
        self.model = model
        self.decay = decay
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.num_steps = 0

    def restart(self) -> None:
        """Forget the average: it is what the model is now."""
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
        """The number of steps; the weights are saved by the checkpointer."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.num_steps = state["num_steps"]


class TrainedWeights:
    """In a checkpoint of averaged weights, the weights that training goes on with.

    Attributes:
        loaded: whether a checkpoint had them.
    """

    def __init__(self, model: nn.Module, allow: Sequence[str]):
        """Wrap a model for the checkpointer.

        Args:
            model: what is trained, without DistributedDataParallel.
            allow: MODEL.WEIGHTS_ALLOW.
        """
        self.model = model
        self.allow = allow
        self.loaded = False

    def state_dict(self) -> dict[str, Any]:
        """Return the model's weights."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights that fit; ConfigError where others are not allowed to differ."""
        load_matching(self.model, state, None, allow=self.allow)
        self.loaded = True
