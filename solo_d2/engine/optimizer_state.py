"""The state of an optimizer in checkpoints, by the names of its parameters.

torch numbers the parameters. The numbers change when a layer is added, frozen or moved to another
group, and a fused optimizer then writes beyond the state's memory.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("solo_d2")

# Options of a parameter group that every optimizer has, or only some versions of torch.
_COMMON = {
    *("params", "param_names", "lr", "initial_lr", "weight_decay", "maximize", "foreach", "fused"),
    *("capturable", "differentiable", "decoupled_weight_decay"),
}
# An option that only this optimizer of SOLVER.OPTIMIZER has.
_TYPICAL = {"betas": "AdamW", "dampening": "SGD"}
# State of Adafactor, which is smaller than its parameter.
_FACTORS = ("row_var", "col_var")
_SHOWN = 20


def save_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return torch's state dict of an optimizer, with the names of its parameters.

    Args:
        optimizer: of the model's parameters.
        model: without DistributedDataParallel.
    """
    return {**optimizer.state_dict(), "names": [name for name, _ in _named(optimizer, model)]}


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    saved: Mapping[str, Any],
    *,
    restarted: Collection[str] = (),
) -> None:
    """Take the saved state of each parameter that is still the same, and log what is left out.

    Options, such as the learning rate, stay those of the optimizer; changed ones are logged.

    Args:
        optimizer: of the model's parameters, new.
        model: without DistributedDataParallel.
        saved: of `save_optimizer`, or torch's state dict, as earlier versions saved it.
        restarted: names of parameters whose weights were not loaded.
    """
    groups = optimizer.state_dict()["param_groups"]
    theirs, ours = _kind(saved["param_groups"]), _kind(groups)
    if theirs != ours:
        name = next((_TYPICAL[key] for key in _TYPICAL if key in theirs), "another one")
        logger.warning(
            f"The optimizer is {type(optimizer).__name__} (SOLVER.OPTIMIZER), but the checkpoint's "
            f"is {name}: its state is dropped, and the optimizer starts anew"
        )
        return
    named = _named(optimizer, model)
    names = _saved_names(saved, groups, named)
    if names is None:
        logger.warning(
            "The checkpoint is of an earlier version, which saved the optimizer's state without "
            "names, and it does not fit: it is dropped, and the optimizer starts anew"
        )
        return
    _log_options(_options(saved["param_groups"], names), _options(groups, [n for n, _ in named]))
    places = dict(zip(names, _numbers(saved["param_groups"]), strict=True))
    states = {name: saved["state"][i] for name, i in places.items() if i in saved["state"]}
    unfit = [
        name
        for name, parameter in named
        if name in states and (name in restarted or not _fits(states[name], parameter))
    ]
    state = {i: states[n] for i, (n, _) in enumerate(named) if n in states and n not in unfit}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    known = {name for name, _ in named}
    for listed, what in (
        (unfit, "is dropped, since they start anew or have other shapes"),
        ([name for name in states if name not in known], "is dropped, since they are not trained"),
        ([name for name in known if name not in places], "is not in the checkpoint"),
    ):
        if listed:
            logger.warning(f"The optimizer's state of {_listed(listed)} {what}")


def _named(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[tuple[str, Tensor]]:
    """The optimizer's parameters in torch's order, with their names in the model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [(names.get(p, f"parameter {i}"), p) for i, p in enumerate(parameters)]


def _numbers(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    return [number for group in groups for number in group["params"]]


def _kind(groups: Sequence[Mapping[str, Any]]) -> set[str]:
    """What tells one optimizer's state from another's: the options that it alone has."""
    options = set(groups[0]) - _COMMON
    # Without it AdamW saves one tensor less.
    return options if groups[0].get("amsgrad") else options - {"amsgrad"}


def _saved_names(
    saved: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    named: Sequence[tuple[str, Tensor]],
) -> list[str] | None:
    """Names of the saved parameters; None if they have none, and do not all fit by their order."""
    if "names" in saved:
        return list(saved["names"])
    sizes = [[len(group["params"]) for group in part] for part in (saved["param_groups"], groups)]
    if sizes[0] != sizes[1]:
        return None
    numbers = _numbers(saved["param_groups"])
    states = [saved["state"].get(number, {}) for number in numbers]
    if not all(_fits(state, p) for state, (_, p) in zip(states, named, strict=True)):
        return None
    return [name for name, _ in named]


def _fits(state: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether each tensor is a single number or has the parameter's shape."""
    return all(
        value.shape in ((), parameter.shape)
        for key, value in state.items()
        if isinstance(value, Tensor) and key not in _FACTORS
    )


def _options(
    groups: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The options of each parameter, by name; "lr" is the one before the schedule."""
    remaining: Iterator[str] = iter(names)
    options: dict[str, dict[str, Any]] = {}
    for group in groups:
        own = {key: value for key, value in group.items() if key not in _COMMON}
        own["lr"] = group.get("initial_lr", group["lr"])
        own["weight_decay"] = group.get("weight_decay")
        options |= {next(remaining): own for _ in group["params"]}
    return options


def _log_options(
    theirs: Mapping[str, Mapping[str, Any]], ours: Mapping[str, Mapping[str, Any]]
) -> None:
    """Log the options that are not the checkpoint's."""
    changes = {
        f"{key} {theirs[name][key]} -> {value}": None
        for name, options in ours.items()
        if name in theirs
        for key, value in options.items()
        if key in theirs[name] and theirs[name][key] != value
    }
    if changes:
        logger.warning(f"The config's options are used, not the checkpoint's: {_listed(changes)}")


def _listed(items: Collection[str]) -> str:
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(list(items)[:_SHOWN]) + more
