"""Values that are computed again for the gradient instead of kept.

In models with many channels, GroupNorm and ReLU take little of a training step's time, but their
results are about half of the memory of the head's activations. `recomputed` keeps the input of a
function for its gradient, and nothing else. The next operation, such as a convolution, usually
keeps the function's result; within `Recomputing`, it keeps how to compute that result again.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


class _State(threading.local):
    is_on = False


_state = _State()


class Recomputing(saved_tensors_hooks):
    """Context of a forward pass in which `recomputed` saves memory."""

    def __init__(self) -> None:
        super().__init__(_pack, _unpack)

    def __enter__(self) -> None:
        _state.is_on = True
        super().__enter__()

    def __exit__(self, *error: object) -> None:
        _state.is_on = False
        super().__exit__(*error)


def recomputed(
    function: Callable[[Tensor], Tensor], x: Tensor, *, by_image: bool = False
) -> Tensor:
    """Return `function(x)`; within `Recomputing`, keep only x for the gradients.

    Args:
        function: cheap, without side effects, and with the same result when it is called again. Its
            parameters get gradients as usual.
        x: input, with a gradient. It must not be changed in place.
        by_image: whether to compute the gradients of each image of a batch separately, which needs
            less memory. The function must not depend on other images.
    """
    if torch.compiler.is_compiling() or not (_state.is_on and torch.is_grad_enabled()):
        return function(x)
    results = [
        checkpoint(_call_outside, function, part, use_reentrant=False, preserve_rng_state=False)
        for part in (x.split(1) if by_image else [x])
    ]
    result: Any = torch.cat(results) if len(results) > 1 else results[0]
    autocast = autocast_settings(x.device.type)
    result.recipe = _Recipe(function, _Saved.of(x), autocast, result._version)
    return result


def autocast_settings(device_type: str) -> dict[str, Any]:
    """Return the arguments of `torch.autocast` for the current state, without its cache."""
    return {
        "device_type": device_type,
        "dtype": torch.get_autocast_dtype(device_type),
        "enabled": torch.is_autocast_enabled(device_type),
        "cache_enabled": False,
    }


@dataclass(frozen=True)
class _Saved:
    """A tensor that must not be changed; torch only checks this where there are no hooks."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_Saved":
        # Detached, because a result that its own operation keeps would never be freed.
        return cls(tensor.detach(), tensor._version)

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)} that is needed for a gradient was "
                "changed by an in-place operation"
            )
        return self.tensor


@dataclass(frozen=True)
class _Recipe:
    """How to compute a tensor again; `version` tells whether that was changed in place since."""

    function: Callable[[Tensor], Tensor]
    x: _Saved
    autocast: dict[str, Any]
    version: int

    def get(self) -> Tensor:
        with torch.no_grad(), torch.autocast(**self.autocast):
            return self.function(self.x.get())


def _pack(tensor: Tensor) -> _Saved | _Recipe:
    recipe: _Recipe | None = getattr(tensor, "recipe", None)
    return recipe if recipe and recipe.version == tensor._version else _Saved.of(tensor)


def _unpack(saved: _Saved | _Recipe) -> Tensor:
    return saved.get()


def _call_outside(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call a function outside of `Recomputing`, like the second time."""
    was_on, _state.is_on = _state.is_on, False
    try:
        return function(x)
    finally:
        _state.is_on = was_on
