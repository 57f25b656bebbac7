"""Steps that come to infinity or NaN: training stops before them, and a file repeats them."""

import itertools
import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from detectron2.structures import PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from solo_d2.engine import Trainer, setup
from solo_d2.engine import bad_step as bad_steps
from solo_d2.engine.bad_step import RunRecord, read_bad_step
from solo_d2.engine.replay import rebuild_model, replay_step
from solo_d2.engine.step import StepTrainer, step_options
from solo_d2.utils.errors import BadNumbersError, ConfigError
from tests.engine.runs import run_config
from tests.modeling.tiny import image, panoptic_config, tiny_config, tiny_model, with_sem_seg
from tools import replay_step as replay_tool

NAN, INF = float("nan"), float("inf")


class Quotient(nn.Module):
    """Two loss terms of one weight; what a sample says is the second's divisor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, batch):
        divisor = sum(sample["divisor"] for sample in batch)
        total = self.weight.sum()
        if any("steep" in sample for sample in batch):  # a root has an infinite slope where it is 0
            total = total + (self.weight[0] - self.weight[0].detach()).abs().sqrt()
        return {"loss_a": total, "loss_b": self.weight.prod() / divisor}


def sample(divisor=1.0, name="good.jpg", **more):
    return {"file_name": name, "divisor": divisor, **more}


def trainer_of(batches, folder, precision=None, *, late=False, **options):
    """With `late` as on CUDA: the optimizer skips a bad step, which is found in the next one."""
    model = Quotient()
    made = StepTrainer(
        model.train(),
        batches,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=late),
        precision=precision,
        record=RunRecord(str(folder), "", 7) if folder else None,
        reads_late=late,
        **options,
    )
    made.iter = 0
    return made


def steps(trainer, count):
    with EventStorage() as storage:
        for trainer.iter in range(count):
            trainer.run_step()
            storage.step()
    return storage


both_ways = pytest.mark.parametrize("late", [False, True])


@both_ways
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_bad_loss_stops_training_before_its_step(tmp_path, precision, late):
    batches = [[sample()], [sample(0.0, "a.jpg"), sample(0.0, "b.jpg")], [sample()]]
    trainer = trainer_of(batches, tmp_path, precision, late=late)
    with pytest.raises(BadNumbersError) as error:
        steps(trainer, 3)
    assert trainer.iter == (2 if late else 1)
    for part in ("Iteration 1", "loss_b is inf", "loss_a is ", "a.jpg, b.jpg"):
        assert part in str(error.value)
    assert "good.jpg" not in str(error.value)
    # As after the first step alone.
    expected = trainer_of(batches, None, precision, late=late)
    steps(expected, 1)
    assert torch.equal(trainer.model.weight, expected.model.weight)
    content = torch.load(tmp_path / "bad_step_0000001.pth", weights_only=True)
    assert torch.equal(content["model"]["weight"], expected.model.weight)
    assert [x["file_name"] for x in content["batches"][0]] == ["a.jpg", "b.jpg"]
    assert math.isinf(content["losses"][0]["loss_b"])
    assert [path.name for path in tmp_path.iterdir()] == ["bad_step_0000001.pth"]
    assert content["precision"] == ("float32" if precision is None else "bfloat16")


@both_ways
@pytest.mark.parametrize("clip", [None, lambda p: nn.utils.clip_grad_norm_(p, 1.0)])
def test_a_bad_gradient_of_good_losses_stops_training_too(tmp_path, clip, late):
    batches = [[sample()], [sample(steep=True)], [sample()]]
    trainer = trainer_of(batches, tmp_path, clip_gradients=clip, late=late)
    with pytest.raises(BadNumbersError, match="Iteration 1: .*1 of 1 .*: weight"):
        steps(trainer, 3)
    assert trainer.model.weight.isfinite().all()
    assert (tmp_path / "bad_step_0000001.pth").is_file()


@both_ways
def test_float16_leaves_bad_gradients_out_and_goes_on(tmp_path, late):
    batches = [[sample(steep=True)]] * 3 + [[sample()]]
    trainer = trainer_of(batches, tmp_path, torch.float16, late=late)
    before = trainer.model.weight.detach().clone()
    scale = trainer.grad_scaler.get_scale()
    with EventStorage():
        for trainer.iter in range(3):
            trainer.run_step()
        assert torch.equal(trainer.model.weight, before)
        assert trainer.grad_scaler.get_scale() == scale / 8
        trainer.iter = 3
        trainer.run_step()
    expected = trainer_of([[sample()]], None)
    steps(expected, 1)  # momentum starts with the first step that is taken
    torch.testing.assert_close(trainer.model.weight, expected.model.weight)
    assert not list(tmp_path.iterdir())


@both_ways
@pytest.mark.parametrize("kind", ["losses", "gradients"])
def test_float16_stops_when_it_goes_on_for_long(tmp_path, kind, caplog, late):
    bad = [sample(0.0, "a.jpg")] if kind == "losses" else [sample(steep=True, name="a.jpg")]
    most = bad_steps.MAX_BAD_LOSSES if kind == "losses" else bad_steps.MAX_BAD_GRADIENTS
    # A good step in between begins the count anew.
    batches = [bad] * (most - 1) + [[sample()]] + [bad] * 99
    trainer = trainer_of(batches, tmp_path, torch.float16, late=late)
    with caplog.at_level(logging.WARNING), pytest.raises(BadNumbersError, match="a.jpg"):
        steps(trainer, len(batches))
    bad_step = 2 * most - 1
    assert trainer.iter == bad_step + late * ((bad_step + 1) % 20 != 0)
    content = read_bad_step(tmp_path / f"bad_step_{bad_step:07}.pth")
    assert content["loss_scale"] == 2.0 ** (16 - 2 * (most - 1))
    if kind == "losses":
        assert "Iteration 0: loss_b is inf" in caplog.text


@both_ways
def test_metrics_are_detectron2s(tmp_path, late):
    trainer = trainer_of([[sample(2.0)]], tmp_path, late=late, read_periods=(1,))
    latest = {name: value for name, (value, _) in steps(trainer, 1).latest().items()}
    assert latest.keys() == {"rank_data_time", "data_time", "total_loss", "loss_a", "loss_b"}
    assert (latest["loss_a"], latest["loss_b"], latest["total_loss"]) == (3.0, 1.0, 4.0)


def test_late_metrics_are_those_of_their_iterations(tmp_path):
    """All are written, and in time for what is saved or evaluated after a step."""
    batches = [[sample(divisor)] for divisor in (1.0, 2.0, 4.0, 8.0, 16.0)]
    histories = []
    for late in (False, True):
        trainer = trainer_of(batches, tmp_path, late=late, read_periods=(3, 0, 5))
        seen = []
        with EventStorage() as storage:
            for trainer.iter in range(5):
                trainer.run_step()
                values = storage.history("loss_b").values() if trainer.iter else []
                seen.append(len(values))
                storage.step()
        assert seen == ([0, 1, 3, 3, 5] if late else [0, 2, 3, 4, 5])
        histories.append(storage.history("loss_b").values())
    assert [i for _, i in histories[1]] == list(range(5))
    for (found, _), (expected, _) in zip(*histories, strict=True):
        assert found == pytest.approx(expected)


def test_late_training_resumes_without_some_momentum():
    trainer, saved = (trainer_of([[sample()]] * 2, None, late=late) for late in (True, False))
    steps(saved, 1)
    state = saved.state_dict()
    state["optimizer"]["state"].clear()
    trainer.load_state_dict(state)
    steps(trainer, 1)
    torch.testing.assert_close(trainer.model.weight, saved.model.weight)


def test_a_file_that_cannot_be_written_does_not_hide_the_error(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    trainer = trainer_of([[sample(0.0)]], tmp_path)
    with pytest.raises(BadNumbersError, match="loss_b is inf.*could not be written.*No space"):
        steps(trainer, 1)
    assert not list(tmp_path.iterdir())


def test_what_may_not_be_a_dump(tmp_path):
    (tmp_path / "text.pth").write_text("no tensors")
    torch.save({"model": {}}, tmp_path / "model.pth")
    for name in ("gone.pth", "text.pth", "model.pth"):
        with pytest.raises(ConfigError, match=name):
            read_bad_step(tmp_path / name)


# --- a dump of a real model, and its replay


def stopped(folder, cfg, numbers, spoil=lambda model: None, polygons=False, **options):
    """Train a tiny model until it stops; the error and the dump's file."""
    cfg.OUTPUT_DIR, cfg.SEED = str(folder), 5
    model = tiny_model(cfg).train()
    spoil(model)
    batch = [
        with_sem_seg({**image(64, 64, num=num, seed=num), "file_name": f"{num}.jpg"})
        for num in numbers
    ]
    if polygons:
        for sample in batch:
            boxes = sample["instances"].gt_boxes.tensor.tolist()
            sample["instances"].gt_masks = PolygonMasks(
                [[[x, y, u, y, u, v, x, v]] for x, y, u, v in boxes]
            )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    made = StepTrainer(model, itertools.repeat(batch), optimizer, **step_options(cfg) | options)
    made.iter = 3
    with EventStorage(3), pytest.raises(BadNumbersError) as error:
        made.run_step()
    return str(error.value), folder / "bad_step_0000003.pth"


@pytest.mark.parametrize(("make_config", "num"), [(tiny_config, 1), (panoptic_config, 2)])
def test_a_replay_finds_where_it_begins(tmp_path, make_config, num, capsys):
    name = "backbone.bottom_up.res4.0.conv2"

    def spoil(model):
        with torch.no_grad():
            model.get_submodule(name).weight[0, 0, 0, 0] = NAN

    said, file = stopped(tmp_path, make_config(), (2, 0, 1), spoil, num_micro_batches=num)
    assert "loss_cls is nan" in said
    assert "Images: 2.jpg, 0.jpg, 1.jpg." in said
    assert f"tools/replay_step.py {file}" in said
    assert replay_tool.main([str(file)]) == 1
    printed = capsys.readouterr().out
    for line in (f"before the step: 1: {name}.weight\n", "  loss_mask: nan\n", f": {name}\n"):
        assert line in printed
    assert int(re.search(r"gradients that are not finite: (\d+): backbone", printed)[1]) > 5


@pytest.mark.parametrize(
    ("precision", "polygons", "numbers"),
    [(None, False, (2, 0, 1)), (None, True, (2,)), (torch.float16, False, (1,))],
)
def test_a_replay_is_the_step_itself(tmp_path, precision, polygons, numbers, monkeypatch):
    """A good step that is called bad: its losses come out to the last bit."""
    monkeypatch.setattr(bad_steps.BadSteps, "add", lambda *_: True)
    options = {"precision": precision, "polygons": polygons}
    _, file = stopped(tmp_path, tiny_config(), numbers, **options)
    content = read_bad_step(file)
    found = replay_step(rebuild_model(content, "cpu", None), content, 0)
    assert found["losses"] == content["losses"][0]
    assert found["weights"] == found["outputs"] == []
    if precision is None:  # gradients overflow in float16, at first
        assert found["gradients"] == []
    names = [sample["file_name"] for sample in content["batches"][0]]
    assert names == [f"{num}.jpg" for num in numbers]


def test_a_training_of_files_stops_and_names_them(shapes, tmp_path):
    trainer = Trainer(setup(run_config(shapes, tmp_path)))
    with torch.no_grad():
        trainer.model.head.class_logits.bias[:] = INF
    with pytest.raises(BadNumbersError, match=r"Iteration 0: .*loss_cls is (nan|inf)") as error:
        trainer.train()
    content = read_bad_step(tmp_path / "bad_step_0000000.pth")
    assert content["seed"] == 7
    for sample in content["batches"][0]:
        assert sample["file_name"] in str(error.value)
        assert Path(sample["file_name"]).is_file()
    assert not (tmp_path / "model_final.pth").exists()
    written = tmp_path / "metrics.json"
    lines = written.read_text().splitlines() if written.is_file() else []
    assert not any("total_loss" in json.loads(line) for line in lines)
