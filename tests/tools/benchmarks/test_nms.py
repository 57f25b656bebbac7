"""The NMS benchmark runs, agrees with itself, and saves what it prints."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from solo_d2.utils.files import save_json
from tools.benchmarks import nms
from tools.benchmarks.common import Peak, Timing, gpu_peak, markdown_table, measure, peak_memory
from tools.benchmarks.scenes import class_frequencies, make_scene

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


def parse(*words):
    parser = argparse.ArgumentParser()
    nms.add_arguments(parser)
    return parser.parse_args([*words, "--device", "cpu", "--repeats", "1"])


def test_measures_prints_and_saves(tmp_path, capsys):
    output = tmp_path / "new" / "nms.json"
    types = ("--type", "matrix", "hard", "soft", "fast")
    scene = ("--num", "40", "--size", "24x37", "--classes", "1", "3")
    nms.run(parse(*scene, *types, "--output", str(output)))
    printed = capsys.readouterr().out
    assert "| matrix" in printed
    results = json.loads(output.read_text())["results"]
    assert [(x["type"], x["classes"]) for x in results] == [
        (name, classes) for classes in (1, 3) for name in ("matrix", "hard", "soft", "fast")
    ]
    for result in results:
        assert result["agreement"]["pairs_that_differ"] == 0
        assert result["agreement"]["largest_score_difference"] < 1e-6
        assert result["milliseconds"]["ours"]["median"] > 0
        assert "floor_ms" not in result  # no share of a CPU's floor


def test_refuses_a_size_that_is_none(capsys):
    with pytest.raises(SystemExit):
        parse("--size", "200")
    assert "no size such as" in capsys.readouterr().err


def test_work_is_what_boxes_share():
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = masks[1, 2:6, 2:6] = masks[2] = True
    labels = torch.zeros(3, dtype=torch.int64)
    work = nms.work(masks, labels)
    assert work == {"bytes": 3 * 64.0, "operations": 2.0 * (4 + 16 + 16)}
    assert nms.work(masks, torch.arange(3))["operations"] == 0
    assert Peak(bandwidth=1e9, int8=1e12).floor_ms(1e6, 2e9) == 2.0


@pytest.mark.parametrize("num_classes", [1, 10, 80])
def test_scene_has_the_statistics_it_names(num_classes):
    masks, labels, scores = make_scene(150, (64, 96), num_classes)
    again = make_scene(150, (64, 96), num_classes)
    assert all(torch.equal(x, y) for x, y in zip((masks, labels, scores), again, strict=True))
    areas = masks.flatten(1).float().mean(dim=1)
    assert (areas > 0).all()
    assert 0.02 < areas.mean() < 0.12
    assert labels.max() < num_classes
    assert (scores.diff() <= 0).all()
    assert class_frequencies(num_classes).sum() == pytest.approx(1)


def test_timing_and_peak_memory():
    timing = Timing.of([3.0, 1.0, 2.0])
    assert (timing.median, timing.least, timing.calls) == (2.0, 1.0, 3)
    calls = []
    timings = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU)
    assert calls[:4] == ["a", "b", "a", "b"]
    assert timings["a"].calls == 11
    size = 64 << 20
    peak = peak_memory(lambda: torch.ones(size, dtype=torch.uint8), CPU)
    assert peak is None or 0.9 * size < peak < 2 * size


def test_no_floor_without_a_gpu():
    assert gpu_peak(parse()) is None


def test_table_and_file(tmp_path):
    assert markdown_table([]) == ""
    assert markdown_table([{"a": 1, "bc": "x"}]) == "| a | bc |\n|---|----|\n| 1 | x  |"
    with pytest.raises(TypeError):
        save_json(tmp_path / "x.json", {"no json": object()})
    assert list(tmp_path.iterdir()) == []


def test_command_line_names_the_commands():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "benchmark.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nms" in done.stdout
