"""The optimizer's state in checkpoints: which parameter gets which, and what is left out."""

import logging

import pytest
import torch
from torch import nn

from solo_d2.engine.optimizer_state import load_optimizer, save_optimizer


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.1, fused=True)


both = pytest.mark.parametrize("make", [sgd, adamw])


def net(**layers):
    """A layer of each name, with that many outputs."""
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(3, width) for name, width in layers.items()})


def step(optimizer, model):
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()


def trained(make, model):
    """A checkpoint after two steps, as it is read from a file."""
    optimizer = make(model.parameters())
    step(optimizer, model)
    step(optimizer, model)
    return optimizer, save_optimizer(optimizer, model)


def state_of(optimizer, model):
    """Per name of a parameter, a sum of all that is kept of it."""
    return {
        name: [value.double().sum().item() for value in optimizer.state[parameter].values()]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


@both
def test_state_goes_to_the_parameter_of_its_name(make, caplog):
    model = net(a=2, b=2, gone=4)
    optimizer, saved = trained(make, model)
    other = net(new=2, b=2, a=2)
    other["a"].weight.requires_grad_(False)
    loaded = make([p for p in other.parameters() if p.requires_grad])
    load_optimizer(loaded, other, saved)
    before, after = state_of(optimizer, model), state_of(loaded, other)
    assert after == {name: before[name] for name in ("b.weight", "b.bias", "a.bias")}
    lines = [record.message for record in caplog.records]
    assert any("gone.weight" in line and "a.weight" in line for line in lines)
    assert any("new.bias" in line for line in lines)
    step(loaded, other)


@both
@pytest.mark.parametrize("width", [1, 2, 30_000])
def test_state_of_another_shape_or_of_new_weights_is_dropped_by_name(make, width, caplog):
    _, saved = trained(make, net(a=2, classes=2))
    other = net(a=2, classes=width)
    loaded = make(other.parameters())
    names = ["classes.weight", "classes.bias"]
    load_optimizer(loaded, other, saved, restarted=names if width == 2 else [])
    assert set(state_of(loaded, other)) == {"a.weight", "a.bias"}
    (record,) = caplog.records
    assert {"classes.weight,", "classes.bias"} <= set(record.message.split())
    step(loaded, other)
    for state in loaded.state.values():
        assert all(v.isfinite().all() for v in state.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize(("old", "new"), [(sgd, adamw), (adamw, sgd)])
def test_state_of_another_optimizer_is_dropped(old, new, caplog):
    model = net(a=2)
    _, saved = trained(old, model)
    loaded = new(model.parameters())
    load_optimizer(loaded, model, saved)
    assert not loaded.state
    (record,) = caplog.records
    kinds = (type(old([torch.ones(1)])).__name__, type(loaded).__name__)
    assert {*kinds, "(SOLVER.OPTIMIZER),"} <= set(record.message.replace(":", "").split())
    step(loaded, model)


@both
@pytest.mark.parametrize("other", [{"a": 2, "b": 4}, {"b": 4, "a": 2}, {"a": 2}])
def test_state_without_names_is_taken_where_all_fits(make, other, caplog):
    model = net(a=2, b=4)
    optimizer, saved = trained(make, model)
    del saved["names"]  # as earlier versions
    changed = net(**other)
    loaded = make(changed.parameters())
    load_optimizer(loaded, changed, saved)
    fits = list(other) == ["a", "b"]
    assert state_of(loaded, changed) == (state_of(optimizer, model) if fits else {})
    assert len(caplog.records) == (0 if fits else 1)


@both
def test_options_are_the_configs_and_changes_are_logged(make, caplog):
    model = net(a=2)
    _, saved = trained(make, model)
    saved["param_groups"][0] |= {"initial_lr": 0.1, "lr": 0.003}
    same = make(model.parameters())
    load_optimizer(same, model, saved)
    assert not caplog.records  # what the schedule made of the learning rate is no change
    a = model["a"]
    loaded = make([{"params": [a.weight], "weight_decay": 0.5, "lr": 0.2}, {"params": [a.bias]}])
    with caplog.at_level(logging.WARNING):
        load_optimizer(loaded, model, saved)
    assert [group["lr"] for group in loaded.param_groups] == [0.2, 0.1]
    assert loaded.param_groups[0]["weight_decay"] == 0.5
    assert set(state_of(loaded, model)) == {"a.weight", "a.bias"}
    assert "lr 0.1 -> 0.2" in caplog.text
    assert "-> 0.5" in caplog.text
