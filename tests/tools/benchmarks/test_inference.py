"""The benchmark of inference: its variants, those that cannot run, and the change of accuracy."""

import argparse
import importlib.util
import json
import math
import shutil

import pytest
import torch

from solo_d2.export import programs
from solo_d2.modeling.speed import FastNetwork, SpeedOptions
from solo_d2.utils.errors import ConfigError
from tests.export.models import detectron2_inputs
from tests.modeling.tiny import save_checkpoint, tiny_config, tiny_model
from tools import benchmark
from tools.benchmarks import inference
from tools.benchmarks.inference import speed_options


def parse(*arguments):
    parser = argparse.ArgumentParser()
    inference.add_arguments(parser)
    return parser.parse_args([str(x) for x in arguments])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    cfg = tiny_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("first",), ("second",)
    return save_checkpoint(folder, cfg, tiny_model(cfg, sure=True)).with_name("config.yaml")


def run(config, output, *arguments):
    common = ["--config-file", config, "--device", "cpu", "--repeats", 1, "--output", output]
    inference.run(parse(*common, *arguments))
    return {row["name"]: row for row in json.loads(output.read_text())["rows"]}


def test_table_and_file(config, tmp_path, capsys):
    variants = ["fused+channels_last", "bf16", "cuda-graphs", "eager", "bf16"]
    options = ("--size", "60x80", "--batch-sizes", 1, 2, "--variants", *variants)
    rows = run(config, tmp_path / "results.json", *options)
    assert list(rows) == ["eager", "fused+channels_last", "bf16", "cuda-graphs"]
    printed = capsys.readouterr().out
    assert "images of about 60x80" in printed
    assert "cuda-graphs is unavailable: TEST.SPEED.COMPILE is 'cuda-graphs'" in printed
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 2 * 3 + 1  # head, three at two sizes, the one that cannot
    assert len({line.count("|") for line in lines}) == 1
    for row in rows.values():
        assert set(row["batches"]) == (set() if row["failure"] else {"1", "2"})
        assert row["metric"] is None
    for batch in ("1", "2"):
        assert rows["bf16"]["batches"][batch]["milliseconds"]["median"] > 0


def test_times_are_of_an_image():
    rows = [
        {
            "name": name,
            "failure": "",
            "batches": {4: {"milliseconds": {"median": median, "iqr": 8.0}, "peak_bytes": 3 << 20}},
            "metric": metric,
        }
        for name, median, metric in (("eager", 80.0, 50.0), ("fast", 20.0, 49.5))
    ]
    rows.append({"name": "other", "failure": "no reason", "batches": {}, "metric": None})
    eager, fast, other = inference.table(rows, [4], "segm/AP")
    assert eager["ms"] == "20 (2)"
    assert eager["images/s"] == "50"
    assert (fast["speed"], fast["MiB"]) == ("4.00", "3")
    assert (fast["segm/AP"], fast["change"]) == ("49.50", "-0.50")
    assert set(other.values()) == {"other", "see below", "-"}
    assert other.keys() == eager.keys()


def test_names_are_options():
    assert SpeedOptions(**speed_options("fused+bf16+compiled")) == SpeedOptions(
        fuse_bn=True, dtype="bfloat16", compile="dynamic"
    )
    for wrong, message in (("fast", "'fast' is no variant"), ("bf16+fp16", "an option twice")):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            speed_options(wrong)
        with pytest.raises(SystemExit):
            parse("--config-file", "c", "--variants", wrong)
    for name in inference.OPTIONS:
        SpeedOptions(**speed_options(name))


def use_data_set(monkeypatch, batches):
    """Data sets of these batches, and a figure that tells the variants apart.

    Returns the data sets that were asked for, and what was evaluated.
    """
    from solo_d2.data import catalog
    from solo_d2.engine import Trainer
    from solo_d2.evaluation import run as evaluation

    asked, evaluated = [], []

    def loader(cls, cfg, name):
        asked.append(name)
        yield from batches

    def figure(cfg, name, model, metric):
        is_fast = isinstance(vars(model).get("network"), FastNetwork)
        evaluated.append((name, metric))
        return math.nan if type(model).__name__ == "OnnxModel" else 50.0 - is_fast

    monkeypatch.setattr(Trainer, "build_test_loader", classmethod(loader))
    monkeypatch.setattr(evaluation, "main_metric", figure)
    monkeypatch.setattr(catalog, "check_datasets", lambda names: None)
    return asked, evaluated


def test_figures_of_a_data_set(config, tmp_path, monkeypatch, capsys):
    pixels = torch.randint(256, (3, 90, 120), dtype=torch.uint8)
    batches = [[{"image": pixels, "height": 70, "width": 110}]] * 2
    asked, evaluated = use_data_set(monkeypatch, batches)
    weights = ("--weights", config.parent / "model.pth", "--dataset", "second")
    rows = run(config, tmp_path / "a.json", *weights, "--variants", "channels_last")
    assert asked == ["second"]
    assert evaluated == [("second", "segm/AP")] * 2
    figures = {name: row["metric"] for name, row in rows.items()}
    assert figures == {"eager": 50.0, "channels_last": 49.0}
    assert capsys.readouterr().out.rstrip().endswith("| 49.00     | -1.00    |")
    with pytest.raises(ConfigError, match="has fewer images than --batch-sizes"):
        run(config, tmp_path / "b.json", *weights, "--batch-sizes", 3)


@pytest.mark.export
def test_exports_are_made_and_calibrated(config, exported, tmp_path, monkeypatch):
    asked, evaluated = use_data_set(monkeypatch, [detectron2_inputs(0), detectron2_inputs(1)])
    cfg = tiny_config()
    cfg.DATASETS.TRAIN = ("first",)
    traced = []
    monkeypatch.setattr(inference, "load", lambda args: (cfg, exported.model))
    monkeypatch.setattr(programs, "trace", lambda pipeline, info: traced.append(info.precision))
    monkeypatch.setattr(programs, "save_onnx", lambda _, path: shutil.copy(exported.onnx, path))
    arguments = ("--weights", "w", "--dataset", "second", "--batch-sizes", 2, "--variants")
    names = [name for name in inference.ONNX if importlib.util.find_spec(inference.ONNX[name][0])]
    rows = run(config, tmp_path / "a.json", *arguments, *names)
    assert [row["failure"] for row in rows.values()] == [""] * (1 + len(names))
    assert [row["metric"] for row in rows.values()] == [50.0] + [None] * len(names)
    assert asked == ["second", "first"]
    assert len(evaluated) == 1 + len(names)
    assert traced == ["float32", "float16"]


def test_what_is_wrong_is_one_line(config, capsys):
    given = ["inference", "--config-file", str(config), "--device", "cpu"]
    for arguments, message in (
        (["--dataset", "second"], "--dataset needs --weights"),
        (["--batch-sizes", "0"], "--batch-sizes must be at least 1"),
        (["--weights", "missing.pth"], "missing.pth does not exist"),
    ):
        assert benchmark.main([*given, *arguments]) != 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("benchmark: ")
        assert message in line
