"""A training that ends early and is resumed ends with the bits of one that was not."""

import pytest
import torch

from solo_d2.engine import Trainer, setup
from solo_d2.engine.hooks import seed_step
from tests.engine.runs import run_config, train

# What has a state. (bfloat16 has none; of the scale of gradients with float16: test_step.py.)
OPTS = (
    *("SOLVER.MAX_ITER", 6, "SOLVER.WARMUP_ITERS", 4, "SOLVER.STEPS", (5,)),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.REFERENCE_IMS_PER_BATCH", 2),
    *("SOLVER.EMA.ENABLED", True, "SOLVER.ACCUMULATE_STEPS", 2),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
)


def assert_same(a, b, where=""):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    else:
        assert a == b, where


def test_ended_while_saving(shapes, tmp_path, monkeypatch):
    """tests/reliability kills trainings at every moment of their writing."""
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: {}))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(setup(run_config(shapes, whole, *OPTS)))
    args, save = run_config(shapes, broken, *OPTS), torch.save

    def save_half(state, file):
        if state["trainer"]["iteration"] == 3:
            file.write(b"half")
            raise KeyboardInterrupt
        save(state, file)

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(KeyboardInterrupt):
        train(setup(args))
    monkeypatch.setattr(torch, "save", save)
    assert (broken / "last_checkpoint").read_text() == "model_0000001.pth"
    args.resume = True
    resumed = train(setup(args), resume=True)
    assert resumed.start_iter == 2
    states = [torch.load(x / "model_final.pth", weights_only=True) for x in (whole, broken)]
    assert_same(*states)
    assert states[0]["trainer"]["hooks"]["EMA"] == {"num_steps": 6}


def test_random_numbers_of_a_step_depend_on_seed_and_step_alone():
    def numbers(seed, iteration):
        seed_step(seed, iteration, process=0)
        return torch.rand(3).tolist()

    assert numbers(7, 5) == numbers(7, 5)
    assert len({tuple(numbers(*case)) for case in ((7, 5), (7, 6), (8, 5))}) == 3
