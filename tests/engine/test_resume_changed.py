"""A training that is resumed with other keys than it began with."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from solo_d2.config import load_config
from solo_d2.data.catalog import training_categories
from solo_d2.engine import Trainer, setup
from solo_d2.utils.errors import ConfigError
from tests.engine.runs import run_config, train

DONE = 2  # iterations of the first training
BASE = (
    *("SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.001, "SOLVER.EMA.ENABLED", True),
    *("TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", DONE, "SOLVER.STEPS", ()),
    *("MODEL.SOLO.HEAD.NORM", "BN"),
)


@pytest.fixture(scope="module")
def first(shapes, tmp_path_factory):
    """The folder of a finished training, whose last evaluation was the best."""
    folder = tmp_path_factory.mktemp("first")
    scores = iter((10.0, 50.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Trainer, "test", classmethod(lambda *_: {"segm": {"AP": next(scores)}, "bbox": {}})
        )
        train(setup(run_config(shapes, folder, *BASE)))
    return folder


@pytest.fixture
def resume(first, shapes, tmp_path, monkeypatch):
    """Resume a copy of that training with other keys; returns the trainer and the log."""
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: {"segm": {"AP": 1.0}, "bbox": {}}))

    numbers = itertools.count()

    def resumed(*opts, steps=0, source=first):
        folder = tmp_path / str(next(numbers))  # a log is opened once in a process
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("log.txt"))
        longer = ("SOLVER.MAX_ITER", DONE + max(steps, 1))
        args = run_config(shapes, folder, *BASE, *longer, *opts)  # the last of a key counts
        args.resume = True
        trainer = Trainer(setup(args))
        trainer.resume_or_load(resume=True)
        if steps:
            trainer.train()
        return trainer, (folder / "log.txt").read_text()

    return resumed


def states(trainer):
    """The optimizer's state by the parameter's name."""
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    return {names[p]: state for p, state in trainer._trainer.optimizer.state.items()}


def test_a_folder_with_other_checkpoints_than_expected_is_warned_of(first, shapes, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(first, folder, ignore=shutil.ignore_patterns("log.txt"))
    args = run_config(shapes, folder, *BASE)
    Trainer(setup(args)).resume_or_load(resume=False)
    assert "checkpoints of an earlier training" in (folder / "log.txt").read_text()
    args.resume = True
    (folder / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(ConfigError, match=r"model_0000009.pth'.* does not exist.*model_best.pth"):
        setup(args)
    args = run_config(shapes, tmp_path / "empty", *BASE)
    Trainer(setup(args)).resume_or_load(resume=True)
    assert "has no checkpoint to resume" in (tmp_path / "empty/log.txt").read_text()


@pytest.mark.parametrize("eval_only", [False, True])
def test_an_overwritten_training_is_not_resumed(first, shapes, tmp_path, monkeypatch, eval_only):
    """A training that ends before its first checkpoint hides those of the one before it."""
    folder = tmp_path / "copy"
    shutil.copytree(first, folder)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", lambda self: 1 / 0)
        trainer = Trainer(setup(run_config(shapes, folder, *BASE)))
        trainer.resume_or_load(resume=False)
        with pytest.raises(ZeroDivisionError):
            trainer.train()
    args = run_config(shapes, folder, "--resume", *["--eval-only"][:eval_only], *BASE)
    with pytest.raises(ConfigError, match="rename last_checkpoint.earlier to last_checkpoint"):
        setup(args)
    (folder / "last_checkpoint.earlier").rename(folder / "last_checkpoint")
    assert setup(args).SEED == 7


def test_without_changes_nothing_is_dropped(first, resume):
    assert (first / "last_checkpoint").read_text() == "model_best.pth"  # saved after the last step
    saved = torch.load(first / "model_best.pth", weights_only=True)
    trainer, log = resume()
    assert trainer.start_iter == DONE
    assert trainer._trainer.data_loader.batch_sampler.start_batch == DONE
    assert trainer.ema.num_steps == DONE
    assert "WARNING" not in log
    assert "initial values" not in log
    named = dict(trainer.model.named_parameters())
    assert states(trainer).keys() == {name for name in named if named[name].requires_grad}
    for name, state in states(trainer).items():
        assert state["step"] == DONE, name
    counters = [name for name in saved["trained_model"] if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        assert trainer.model.state_dict()[name] == saved["trained_model"][name] > 0, name


def test_parameters_of_another_shape_lose_their_state_and_train(first, resume, tmp_path):
    opts = ("MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS", 16)
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS_ALLOW"):
        resume(*opts)
    config = (first / "config.yaml").read_bytes()
    assert (tmp_path / "0/config.yaml").read_bytes() == config  # a refused one changes nothing
    patterns = ["head.kernel_params.*", "head.mask_feature.*"]
    trainer, log = resume(*opts, "MODEL.WEIGHTS_ALLOW", patterns, steps=1)
    saved = load_config(f"{trainer.cfg.OUTPUT_DIR}/config.yaml")
    assert saved.MODEL.SOLO.MASK_FEATURE.OUT_CHANNELS == 16
    steps = {name: state["step"].item() for name, state in states(trainer).items()}
    anew = {name for name, step in steps.items() if step == 1}
    assert {"head.kernel_params.weight", "head.kernel_params.bias"} <= anew
    assert all(name.startswith(("head.kernel_params.", "head.mask_feature.")) for name in anew)
    assert len(anew) < len(steps)
    assert trainer.ema.num_steps == 1
    assert "head.kernel_params.bias" in log
    assert "EMA restarts" in log
    assert "best metric so far is dropped" in log


def test_learning_rate_and_options_are_those_that_are_given(resume):
    trainer, log = resume(
        *("SOLVER.BASE_LR", 0.01, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.BIAS_LR_FACTOR", 2.0),
        *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", (4,)),
        *("SOLVER.MAX_ITER", 6, "SOLVER.WARMUP_ITERS", 3, "SOLVER.WARMUP_FACTOR", 0.1),
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
    )
    optimizer = trainer._trainer.optimizer
    assert {group["weight_decay"] for group in optimizer.param_groups} >= {0.5}
    assert all(state["step"] == DONE for state in states(trainer).values())
    assert "lr 0.001 -> 0.01" in log
    assert "config.yaml: SOLVER.BASE_LR 0.001 -> 0.01" in log
    trainer.train()
    logged = [value for value, _ in trainer.storage.history("lr").values()]
    # Of the six iterations the last four: the end of the warm-up, the rate, and a tenth of it.
    assert logged == pytest.approx([0.007, 0.01, 0.001, 0.001])


def test_another_optimizer_batch_size_and_schedule(first, resume, shapes, tmp_path, monkeypatch):
    """The optimizer starts anew; the order of images, the length and the classes are compared."""
    classes = training_categories

    def renamed(cfg):
        return [{**classes(cfg)[0], "name": "new name"}, *classes(cfg)[1:]]

    monkeypatch.setattr(Trainer, "categories", lambda self: renamed(self.cfg))
    batch = ("SOLVER.IMS_PER_BATCH", 2, "SOLVER.REFERENCE_IMS_PER_BATCH", 2)
    trainer, log = resume("SOLVER.OPTIMIZER", "SGD", *batch, "SOLVER.MAX_ITER", 1, steps=1)
    assert isinstance(trainer._trainer.optimizer, torch.optim.SGD)
    assert trainer._trainer.data_loader.batch_sampler.start_batch == 2 * DONE
    assert trainer.start_iter == DONE
    for said in (
        *("SOLVER.OPTIMIZER", "SOLVER.IMS_PER_BATCH is 2, but 4", "SOLVER.MAX_ITER is 1"),
        *("classes differ", "new name", classes(trainer.cfg)[0]["name"]),
    ):
        assert said in log
    args = run_config(shapes, tmp_path / "next", *BASE, "MODEL.WEIGHTS", first / "model_final.pth")
    Trainer(setup(args)).resume_or_load(resume=False)
    log = (tmp_path / "next/log.txt").read_text()
    assert "classes differ" in log  # also without --resume, unless the class layer starts anew


def test_a_changed_batch_size_is_warned_of_once(resume):
    batch = ("SOLVER.IMS_PER_BATCH", 2, "SOLVER.REFERENCE_IMS_PER_BATCH", 2)
    trainer, log = resume(*batch, steps=1)
    assert "SOLVER.IMS_PER_BATCH is 2, but 4" in log
    trainer, log = resume(*batch, source=Path(trainer.cfg.OUTPUT_DIR), steps=2)
    assert trainer.start_iter == DONE + 1
    assert trainer._trainer.data_loader.batch_sampler.start_batch == 2 * DONE + 1
    assert "WARNING" not in log
