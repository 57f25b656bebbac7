"""A step of training: parts of a batch, mixed precision, clipping."""

import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from solo_d2.engine import Trainer
from solo_d2.engine.step import StepTrainer, step_options
from solo_d2.engine.trainer import fused_sgd
from solo_d2.utils.errors import ConfigError
from tests.modeling.tiny import image, panoptic_config, tiny_config, tiny_model, with_sem_seg


def batch():
    """Images of several sizes, with many, few and no instances."""
    sizes = ((64, 96), (96, 128), (64, 64), (80, 128), (96, 100))
    numbers = (6, 1, 0, 3, 2)
    samples = [
        image(*size, num=num, seed=seed)
        for seed, (size, num) in enumerate(zip(sizes, numbers, strict=True))
    ]
    return [with_sem_seg(sample) for sample in samples]


def trainer_of(model, images=None, **options):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return StepTrainer(model, itertools.repeat(images or batch()), optimizer, **options)


def step(trainer):
    """Take a step, and return the scalars that were logged."""
    trainer.iter = 0
    with EventStorage() as storage:
        trainer.run_step()
    return {name: value for name, (value, _) in storage.latest().items()}


@pytest.mark.parametrize("make_config", [tiny_config, panoptic_config])
@pytest.mark.parametrize("num_micro_batches", [2, 5])
def test_parts_teach_what_the_whole_batch_does(make_config, num_micro_batches):
    models = [tiny_model(make_config()) for _ in range(2)]
    logged = [
        step(trainer_of(model, num_micro_batches=parts))
        for model, parts in zip(models, (1, num_micro_batches), strict=True)
    ]
    for name, value in logged[0].items():
        if not name.endswith("data_time"):
            assert logged[1][name] == pytest.approx(value, rel=1e-5), name
    whole, parts = (model.state_dict() for model in models)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_gradients_are_exchanged_once_a_batch(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = DistributedDataParallel(tiny_model(), broadcast_buffers=False)
        calls = []

        def count(_state, bucket):
            calls.append(bucket.is_last())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, count)
        step(trainer_of(model, num_micro_batches=3))
    finally:
        torch.distributed.destroy_process_group()
    assert sum(calls) == 1
    expected = tiny_model()
    step(trainer_of(expected))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.module.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def test_mixed_precision_trains_on_the_cpu():
    model, exact = tiny_model(), tiny_model()
    seen = set()
    tower = next(m for m in model.head.modules() if isinstance(m, nn.Conv2d))
    tower.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    images = [image(64, 96, num=4), image(48, 64, num=2, seed=1)]  # few: it is slow on the CPU
    found = step(trainer_of(model, images, num_micro_batches=2, precision=torch.bfloat16))
    expected = step(trainer_of(exact, images))
    assert seen == {torch.bfloat16}
    assert found["total_loss"] == pytest.approx(expected["total_loss"], rel=0.02)
    start = tiny_model().state_dict()
    for name, value in model.state_dict().items():
        assert value.dtype == start[name].dtype
        change, right = value - start[name], exact.state_dict()[name] - start[name]
        if right.norm() > 1e-3:
            cosine = torch.cosine_similarity(change.flatten(), right.flatten(), dim=0)
            assert cosine > 0.9, name


@pytest.mark.parametrize(
    ("optimizer", "precision"), [("SGD", None), ("AdamW", None), ("AdamW", torch.float16)]
)
def test_the_whole_gradient_is_clipped_in_true_units(optimizer, precision):
    cfg = tiny_config()
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "full_model", 0.01
    cfg.SOLVER.OPTIMIZER = optimizer
    model = tiny_model(cfg).train()
    built = Trainer.build_optimizer(cfg, model)
    assert type(built).__name__ == optimizer  # not Detectron2's, which clips each parameter
    options = step_options(cfg) | {"precision": precision}
    small = [image(48, 64)]  # float16 is slow on the CPU
    trainer = StepTrainer(model, itertools.repeat(small), built, **options)
    if precision:
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    norms = []
    clip_gradients = trainer.clip_gradients

    def watch(parameters):
        norms.append(clip_gradients(parameters).item())
        norms.append(nn.utils.get_total_norm([p.grad for p in parameters]).item())
        return norms[0]

    trainer.clip_gradients = watch
    step(trainer)
    plain = tiny_model(tiny_config()).train()
    with EventStorage():
        sum(plain(small).values()).backward()
    gradients = [p.grad for p in plain.parameters() if p.grad is not None]
    assert norms[0] == pytest.approx(nn.utils.get_total_norm(gradients).item(), rel=0.05)
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_clipping_of_each_parameter_is_left_to_detectron2():
    cfg = tiny_config()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = True, "norm"
    built = Trainer.build_optimizer(cfg, nn.Linear(2, 2))
    assert type(built).__name__ == "SGDWithGradientClip"
    assert step_options(cfg)["clip_gradients"] is None


@pytest.mark.parametrize("clips", [False, True])
def test_fused_sgd_steps_as_detectron2s(clips):
    cfg = tiny_config()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = clips, 1e-3
    models = [tiny_model(cfg).train() for _ in range(2)]
    start = models[0].head.class_logits.weight.detach().clone()
    for model, late in zip(models, (False, True), strict=True):
        optimizer = Trainer.build_optimizer(cfg, model)
        if late:
            optimizer = fused_sgd(optimizer)
        trainer = StepTrainer(
            model, itertools.repeat([image(48, 64)]), optimizer, reads_late=late, read_periods=(1,)
        )
        for _ in range(2):
            step(trainer)
    assert not torch.equal(models[0].head.class_logits.weight, start)
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value, msg=name)


def test_the_scale_of_gradients_is_resumed():
    trainers = [trainer_of(nn.Linear(2, 2), precision=torch.float16) for _ in range(2)]
    for trainer in trainers:
        trainer.grad_scaler.scale(torch.ones(()))  # it is made when it is first used
    trainers[0].grad_scaler.update(128.0)
    trainers[0].iter = 3
    trainers[1].load_state_dict(trainers[0].state_dict())
    assert trainers[1].grad_scaler.get_scale() == 128.0
    exact = trainer_of(nn.Linear(2, 2))
    exact.load_state_dict(trainers[0].state_dict())  # another precision is no error
    assert exact.iter == 3


def test_other_models_are_not_trained_in_parts():
    with pytest.raises(ConfigError, match="ACCUMULATE_STEPS is 2.*Linear"):
        trainer_of(nn.Linear(2, 2), num_micro_batches=2)
