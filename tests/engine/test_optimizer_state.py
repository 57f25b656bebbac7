"""The optimizer's state in checkpoints: which parameter gets which, and what is left out."""

import logging

import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from torch import nn  # noqa: E402

from solo_d2.engine.optimizer_state import load_optimizer, save_optimizer  # noqa: E402

SGD = ("SGD", lambda groups, **more: torch.optim.SGD(groups, lr=0.1, momentum=0.9, **more))
ADAMW = ("AdamW", lambda groups, **more: torch.optim.AdamW(groups, lr=0.1, fused=True, **more))
KINDS = pytest.mark.parametrize("make", [SGD[1], ADAMW[1]], ids=[SGD[0], ADAMW[0]])


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


@KINDS
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


@KINDS
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 30_000)])
def test_state_of_another_shape_is_dropped_by_name(make, before, after, caplog):
    _, saved = trained(make, net(a=2, classes=before))
    other = net(a=2, classes=after)
    loaded = make(other.parameters())
    load_optimizer(loaded, other, saved)
    assert set(state_of(loaded, other)) == {"a.weight", "a.bias"}
    (record,) = caplog.records
    assert {"classes.weight,", "classes.bias"} <= set(record.message.split())
    step(loaded, other)
    for state in loaded.state.values():
        assert all(v.isfinite().all() for v in state.values() if isinstance(v, torch.Tensor))


@KINDS
def test_state_of_weights_that_start_anew_is_dropped(make):
    model = net(a=2, b=2)
    _, saved = trained(make, model)
    loaded = make(model.parameters())
    load_optimizer(loaded, model, saved, restarted=["b.weight"])
    assert set(state_of(loaded, model)) == {"a.weight", "a.bias", "b.bias"}


@pytest.mark.parametrize(("old", "new"), [(SGD, ADAMW), (ADAMW, SGD)])
def test_state_of_another_optimizer_is_dropped(old, new, caplog):
    model = net(a=2)
    _, saved = trained(old[1], model)
    loaded = new[1](model.parameters())
    load_optimizer(loaded, model, saved)
    assert not loaded.state
    (record,) = caplog.records
    assert {old[0], new[0]} <= set(record.message.replace(":", "").split())
    assert "SOLVER.OPTIMIZER" in record.message
    step(loaded, model)


@KINDS
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
    step(loaded, changed)


@KINDS
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
