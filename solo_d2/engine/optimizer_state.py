"""The state of an optimizer in checkpoints, by parameter name.

torch identifies parameters by index. The indices change when a layer is added, frozen or moved to
another group, and a fused optimizer then writes beyond the state's memory.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solo_d2.utils.errors import listed

logger = logging.getLogger("solo_d2")

Groups = Sequence[Mapping[str, Any]]
# Options of a parameter group that every optimizer has, or that depend on the version of torch.
_COMMON = {
    *("params", "param_names", "lr", "initial_lr", "weight_decay", "maximize", "foreach", "fused"),
    *("capturable", "differentiable", "decoupled_weight_decay"),
}
# An option that only this optimizer of SOLVER.OPTIMIZER has.
_TYPICAL = {"betas": "AdamW", "dampening": "SGD"}
# State of Adafactor that is smaller than its parameter.
_FACTORS = ("row_var", "col_var")


def save_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return torch's state dict of an optimizer, with the names of its parameters."""
    return {**optimizer.state_dict(), "names": list(_named(optimizer, model))}


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    saved: Mapping[str, Any],
    *,
    restarted: Collection[str] = (),
) -> None:
    """Load the saved state of each unchanged parameter, and log what is dropped.

    Options, such as the learning rate, stay those of the optimizer; changes are logged.

    Args:
        optimizer: new optimizer of the model's parameters.
        model: the model, without DistributedDataParallel.
        saved: result of `save_optimizer`, or torch's state dict, as saved by earlier versions.
        restarted: names of parameters whose weights were not loaded.
    """
    groups = optimizer.state_dict()["param_groups"]
    theirs, ours = _kind(saved["param_groups"]), _kind(groups)
    if theirs != ours:
        name = next((_TYPICAL[key] for key in _TYPICAL if key in theirs), "another one")
        logger.warning(
            f"The optimizer is {type(optimizer).__name__} (SOLVER.OPTIMIZER), but the checkpoint's "
            f"is {name}: its state is dropped"
        )
        return
    named = _named(optimizer, model)
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    by_number = [saved["state"].get(number, {}) for number in numbers]
    names = saved.get("names")
    if names is None:  # those of the model, if everything fits in order
        sizes = [[len(x["params"]) for x in part] for part in (saved["param_groups"], groups)]
        if sizes[0] != sizes[1] or not all(map(_fits, by_number, named.values())):
            logger.warning(
                "The optimizer state in the checkpoint is of an earlier version, without parameter "
                "names, and does not fit: it is dropped"
            )
            return
        names = list(named)
    before, after = _options(saved["param_groups"], names), _options(groups, list(named))
    changes = {
        f"{key} {before[name][key]} -> {value}": None
        for name in after
        for key, value in after[name].items()
        if before.get(name, {}).get(key, value) != value
    }
    if changes:
        logger.warning(f"The config's options replace the checkpoint's: {listed(changes)}")
    states = {name: state for name, state in zip(names, by_number, strict=True) if state}
    known = [name for name in named if name in states]
    unfit = [n for n in known if n in restarted or not _fits(states[n], named[n])]
    kept = {i: states[n] for i, n in enumerate(named) if n in states and n not in unfit}
    optimizer.load_state_dict({"state": kept, "param_groups": groups})
    for affected, what in (
        (unfit, "is dropped, since their weights were not loaded or have other shapes"),
        ([n for n in states if n not in named], "is dropped, since they are not trained"),
        ([n for n in named if n not in before], "is not in the checkpoint"),
    ):
        if affected:
            logger.warning(f"The optimizer state of {listed(affected)} {what}")


def _named(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's parameters in torch's order, by their names in the model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {names.get(p, f"parameter {i}"): p for i, p in enumerate(parameters)}


def _kind(groups: Groups) -> set[str]:
    """Return the options that distinguish the state of one optimizer from another's."""
    options = set(groups[0]) - _COMMON
    # Without amsgrad, AdamW saves one tensor less.
    return options if groups[0].get("amsgrad") else options - {"amsgrad"}


def _fits(state: Mapping[str, Any], parameter: Tensor) -> bool:
    """Return whether each tensor is a scalar or has the parameter's shape."""
    return all(
        value.shape in ((), parameter.shape)
        for key, value in state.items()
        if isinstance(value, Tensor) and key not in _FACTORS
    )


def _options(groups: Groups, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the options of each parameter, by name; "lr" is the one before the schedule."""
    remaining = iter(names)
    options: dict[str, dict[str, Any]] = {}
    for group in groups:
        own = {key: value for key, value in group.items() if key not in _COMMON}
        own["lr"] = group.get("initial_lr", group["lr"])
        own["weight_decay"] = group.get("weight_decay")
        options |= {next(remaining): own for _ in group["params"]}
    return options
