"""What makes training fast changes neither losses nor the state dict, and compiles in one piece."""

import copy

import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from detectron2.utils.events import EventStorage  # noqa: E402

from solo_d2.engine import Trainer  # noqa: E402
from solo_d2.engine.checks import check_run_config  # noqa: E402
from solo_d2.modeling import SOLO_HEAD_REGISTRY, training_speed  # noqa: E402
from solo_d2.modeling.training_speed import speed_up_training  # noqa: E402
from solo_d2.utils.errors import ConfigError  # noqa: E402
from tests.modeling.tiny import (  # noqa: E402
    image,
    panoptic_config,
    tiny_config,
    tiny_model,
    with_sem_seg,
)


@pytest.fixture
def eager(monkeypatch):
    """Compile in one piece or not at all, but for the backend that does nothing."""
    for settings in training_speed.TRAINING_COMPILE.values():
        monkeypatch.setitem(settings, "fullgraph", True)
        monkeypatch.setitem(settings, "backend", "eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def losses_of(model, batch):
    with EventStorage():
        return model.train()(batch)


@pytest.mark.parametrize("head", [name for name, _ in SOLO_HEAD_REGISTRY])
def test_compiles_without_a_break(head, eager):
    model, batch = tiny_model(tiny_config(head)), [image(seed=1)]
    expected = losses_of(model, batch)
    if head == "SOLOv2Head":
        assert speed_up_training(model, channels_last=False, compile="dynamic") is model
    else:  # tracing the backbone, and sizes as symbols, once is enough
        model.head.compile(**training_speed.TRAINING_COMPILE["static"])
    losses = losses_of(model, batch)
    torch.testing.assert_close(losses, expected)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_compiles_the_semantic_branch(eager):
    model = tiny_model(panoptic_config())
    batch = [with_sem_seg(image(seed=1))]
    expected = losses_of(model, batch)
    model.semantic_branch.compile(**training_speed.TRAINING_COMPILE["static"])
    torch.testing.assert_close(losses_of(model, batch), expected)


def test_copies_are_not_compiled_and_keys_stay():
    model = tiny_model(panoptic_config())
    keys = list(model.state_dict())
    speed_up_training(model, channels_last=True, compile="static")
    assert list(model.state_dict()) == keys
    twin = copy.deepcopy(model)
    for name in ("backbone", "head", "semantic_branch"):
        assert getattr(model, name)._compiled_call_impl is not None
        assert getattr(twin, name)._compiled_call_impl is None


def test_channels_last_gives_the_same_losses():
    model, batch = tiny_model(), [image(seed=1), image(seed=2)]
    outputs = []
    model.head.register_forward_hook(lambda module, args, output: outputs.append(output))
    results = []
    for channels_last in (False, True):
        speed_up_training(model, channels_last=channels_last, compile="")
        losses = losses_of(model, batch)
        gradient = torch.autograd.grad(sum(losses.values()), model.head.kernel_params.weight)
        results.append((losses, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    layouts = [
        output.mask_features[0].is_contiguous(memory_format=torch.channels_last)
        for output in outputs
    ]
    assert layouts == [False, True]


def test_config_reaches_the_model():
    cfg = tiny_config()
    plain = Trainer.build_model(cfg)
    cfg.merge_from_list(["SOLVER.CHANNELS_LAST", True, "SOLVER.COMPILE", "dynamic"])
    check_run_config(cfg)
    fast = Trainer.build_model(cfg)
    for model, expected in ((plain, False), (fast, True)):
        weight = model.head.class_tower[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == expected
        assert (model.backbone._compiled_call_impl is not None) == expected


def test_unknown_way_to_compile():
    cfg = tiny_config()
    cfg.SOLVER.COMPILE = "cuda-graphs"
    with pytest.raises(ConfigError, match="SOLVER.COMPILE is 'cuda-graphs'.*'dynamic', 'static'"):
        check_run_config(cfg)
