"""The best checkpoint, early stopping and the average of the weights."""

import json
from pathlib import Path

import torch
from torch import nn

from solo_d2.config import load_config
from solo_d2.engine import Trainer, setup
from solo_d2.engine.hooks import EMA
from tests.engine.runs import run_config, train


def give_scores(monkeypatch, *scores):
    scores = iter(scores)
    monkeypatch.setattr(
        Trainer, "test", classmethod(lambda *_: {"segm": {"AP": next(scores)}, "bbox": {}})
    )
    return scores


def load(file):
    return torch.load(file, weights_only=True)


def test_best_checkpoint_is_kept_and_knows_that_it_is(shapes, tmp_path, monkeypatch):
    give_scores(monkeypatch, 10.0, 30.0, 20.0)
    train(setup(run_config(shapes, tmp_path, "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 3)))
    best = load(tmp_path / "model_best.pth")
    assert best["iteration"] == 1
    state = {"best_metric": 30.0, "best_iter": 1}
    for checkpoint in (best, load(tmp_path / "model_final.pth")):
        assert checkpoint["trainer"]["hooks"]["ResumableBestCheckpointer"] == state


def test_stops_after_evaluations_without_a_better_one(shapes, tmp_path, monkeypatch):
    opts = ("TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 9, "SOLVER.EARLY_STOPPING_PATIENCE", 2)
    left = give_scores(monkeypatch, 10.0, 30.0, float("nan"), 30.0, 50.0, 40.0, 40.0, 60.0)
    cfg = setup(run_config(shapes, tmp_path, *opts))
    train(cfg)
    final = load(tmp_path / "model_final.pth")
    assert final["iteration"] == 3
    written = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in written if "total_loss" in line] == [3]
    # Resumed, there are as many evaluations again, since one of them is better.
    trainer = train(cfg, resume=True)
    assert trainer.start_iter == 4
    assert load(tmp_path / "model_final.pth")["iteration"] == 6
    assert list(left) == [60.0]  # and no evaluation is made twice


def test_of_several_data_sets_the_first_decides(shapes, tmp_path, monkeypatch):
    scores = iter((10.0, 30.0, 20.0, 20.0))

    def test(*_):
        first = next(scores)
        both = {"custom_val": first, "second": 40 - first}
        return {name: {"segm": {"AP": score}} for name, score in both.items()}

    monkeypatch.setattr(Trainer, "test", classmethod(test))
    opts = ("TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 9, "SOLVER.EARLY_STOPPING_PATIENCE", 2)
    names = ("DATASETS.TEST", "('custom_val', 'second')")
    args = run_config(shapes, tmp_path, *opts, *names)
    cfg = load_config(args.config_file)
    cfg.DATASETS.COCO_FORMAT = [["second", args.val_json, args.val_images]]
    Path(args.config_file).write_text(cfg.dump())
    train(setup(args))
    assert load(tmp_path / "model_best.pth")["iteration"] == 1
    assert load(tmp_path / "model_final.pth")["iteration"] == 3


def test_average_of_weights_by_hand():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ema = EMA(model, 0.15)
    expected = model[0].weight.detach().clone()
    for decay in (1 / 10, 0.15, 0.15):  # rising to the one given: 2/11 is more
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(8, 2))
        ema.after_step()
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(ema.average[0].weight, expected)
    assert not ema.average[0].weight.requires_grad
    for name, value in model[1].named_buffers():
        assert torch.equal(ema.average[1].get_buffer(name), value)
    assert ema.average[1].num_batches_tracked == 3
    ema.restart()
    assert torch.equal(ema.average[0].weight, model[0].weight)
    assert ema.num_steps == 0
