"""The benchmark of training compares equal things, and prints and saves what it measures."""

import argparse
import json

import pytest
import torch

from solo_d2.utils.errors import ConfigError
from tests.modeling.tiny import panoptic_config, tiny_config
from tools.benchmarks import train
from tools.benchmarks.plain_training import plain_targets
from tools.benchmarks.train import assignment, draw_instances, same_targets
from tools.benchmarks.training_step import STAGES, StepBenchmark


def parse(words):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(["--device", "cpu", "--repeats", "1", *words.split()])


def config_file(folder, cfg):
    file = folder / "config.yaml"
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 96)
    cfg.INPUT.MAX_SIZE_TRAIN = 128
    file.write_text(cfg.dump())
    return file


def test_tables_and_file(tmp_path, capsys):
    file, output = config_file(tmp_path, tiny_config()), tmp_path / "results.json"
    small = "--size 96x128 --images 2 --dense 12 --instances 4 --image-size 60x80 --batch 2"
    train.run(parse(f"--config-file {file} {small} --output {output}"))
    printed = capsys.readouterr().out
    for stage in (*STAGES, "mask loss", "ours", "plain"):
        assert f"| {stage}" in printed
    assert "| images per second" in printed
    results = json.loads(output.read_text())["results"]
    assert list(results) == list(train.PARTS)
    assert all(result["difference"] < 1e-5 for result in results.values())
    assert all(result["samples"] > 4 for result in results.values())
    step = results["step"]
    assert step["input_size"] == "96x128"  # the largest size, padded
    times = {name: stage["milliseconds"] for name, stage in step["stages"].items()}
    for name, pipeline in step["pipelines"].items():
        assert all(times[stage][name]["median"] > 0 for stage in STAGES)
        rate = 2000 / times["all but data"][name]["median"]
        assert pipeline["images_per_second"] == pytest.approx(rate)


@pytest.mark.parametrize("conflict", ["all", "last"])
def test_plain_step_gives_the_losses_of_the_model(conflict, tmp_path):
    cfg = panoptic_config()
    cfg.MODEL.SOLO.CELL_CONFLICT = conflict
    file = config_file(tmp_path, cfg)
    step = StepBenchmark(
        parse(f"--config-file {file} --parts step --instances 40 --image-size 60x80 --batch 1")
    )
    batch = next(step.batches(tmp_path))
    weights = [p.detach().clone() for p in step.model.parameters()]
    assert step.compare(batch)["difference"] < 1e-5
    step.step(batch, "plain")
    assert any((a != b).any() for a, b in zip(weights, step.model.parameters(), strict=True))
    losses = step.losses
    step.losses = lambda batch, name, watch: {
        key: value * (1.25 if name == "plain" else 1)
        for key, value in losses(batch, name, watch).items()
    }
    assert step.compare(batch)["difference"] == pytest.approx(0.2, rel=1e-3)


def test_difference_is_seen():
    """Targets that differ in one class, cell or pixel are not the same."""
    instances = draw_instances(parse("--size 96x128"), 1, 5)
    ours, plain = assignment((96, 128))
    targets = plain(*instances)
    assert same_targets(ours(*instances), targets)
    boxes, classes, masks = instances
    other = [(classes[0] + 1) % 80]
    assert not same_targets(ours(boxes, other, masks), targets)
    largest = masks[0].flatten(1).sum(dim=1).argmax()
    masks[0][largest, :, ::3] = False
    assert not same_targets(ours(*instances), targets)


def test_plain_of_nothing():
    targets = plain_targets(
        [torch.zeros(0, 4)],
        [torch.zeros(0, dtype=torch.int64)],
        [torch.zeros(0, 32, 32, dtype=torch.bool)],
        padded_size=(32, 32),
        num_grids=[3],
        scale_ranges=[[1, 64]],
        mask_strides=[4],
        num_classes=2,
    )
    assert (targets.classes == 2).all()
    assert targets.masks[0][0].shape == (0, 8, 8)


@pytest.mark.parametrize(
    ("opts", "message"),
    [("MODEL.SOLO.CELL_CONFLICT nearest", "CELL_CONFLICT"), ("MODEL.SOLO.NOTHING 1", "NOTHING")],
)
def test_refuses_configs_by_key(opts, message, tmp_path):
    file = config_file(tmp_path, tiny_config())
    with pytest.raises(ConfigError, match=message):
        train.run(parse(f"--config-file {file} --parts step --batch 1 {opts}"))
    with pytest.raises(ConfigError, match="--config-file"):
        train.run(parse("--parts step"))
